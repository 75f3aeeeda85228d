"""GPTQ's format, as AutoGPTQ and GPTQModel write it: a scale and an integer zero point for each group of inputs.

    W_hat = scales * (codes - zeros),   codes 0 .. 2^bits - 1,   groups of group_size inputs x 1 output

| tensor | type | shape |
|---|---|---|
| `NAME.qweight` | int32 | (D_in * bits / 32, D_out): the codes of a column, the first in the lowest bits |
| `NAME.qzeros` | int32 | (D_in / group_size, D_out * bits / 32): the zeros of a row, the first in the lowest bits |
| `NAME.scales` | float16, bfloat16 or float32 | (D_in / group_size, D_out) |
| `NAME.g_idx` | int32 | (D_in,): the group of each input |

Version 1 stores zeros - 1, version 2 zeros. `sym` changes nothing in the layout: all zeros are 2^(bits - 1). It is not
trusted when a file is read; the zeros tell.

In version 1, the zero 0 is stored as 2^bits - 1, and tools disagree on it. GPTQModel takes 1 off each word, not off
each field, so that a field may borrow from the next one; adding 1 to the words undoes that. AutoGPTQ reads fields, at
2, 4 and 8 bits as here. So version 1 is written only of symmetric layers, which have no such zero; others get 2.

Transposed and read as bytes, `qweight` is what `quant.packing` packs.
"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.factors import ZeroPoints
from quant.formats.integers import Integers, IntegerSetting
from quant.formats.stored import (
    CONFIG,
    FLOATS,
    INTEGER,
    Stated,
    StoredFormat,
    check_order,
    check_shapes,
    group_size,
    in_type,
    levels_of,
    of_16_bits,
    one_of,
    pack_rows,
    settings_by,
    unpack_rows,
)
from quant.grid import Block, Grid
from quant.linear import QuantLinear

BITS = (2, 3, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 2}


@dataclass(frozen=True)
class GPTQ(StoredFormat):
    bits: int
    group_size: int | None  # None: all inputs
    desc_act: bool
    version: int
    symmetric: bool
    by_words: bool = False  # version 1, whose zeros - 1 were made word by word
    name = "gptq"
    parts = {"qweight": ("I32",), "qzeros": ("I32",), "scales": FLOATS}
    optional = {"g_idx": ("I32",)}
    small = ("g_idx",)
    real_offsets = False

    @classmethod
    def of(cls, config: dict) -> "GPTQ | None":
        """Raises ValueError, naming the key, for settings that are not read."""
        stated = settings_by("gptq", config)
        if stated is None:
            return None
        one_of(stated, "is_marlin_format", (False,), usual=False)
        one_of(stated, "pack_dtype", ("int32",), usual="int32")
        key = next((key for key in ("checkpoint_format", "format") if key in stated), "checkpoint_format")
        version = VERSIONS[one_of(stated, key, tuple(VERSIONS), usual="gptq")]
        of_layers = stated.get("dynamic") or {}
        if not isinstance(of_layers, dict) or any(not name.startswith("-:") for name in of_layers):
            raise ValueError(f"{CONFIG}: dynamic states sizes of single layers, which are not read; only layers that "
                             f"stay dense (-:NAME) are")
        desc_act = one_of(stated, "desc_act", (False, True), usual=False)
        bits, symmetric = one_of(stated, "bits", BITS), stated.get("sym") is True
        meta = stated.get("meta")
        by_words = bits != 3 and "gptqmodel" in str(meta.get("quantizer") if isinstance(meta, dict) else "").lower()
        return cls(bits, group_size(stated), desc_act, version, symmetric, by_words)

    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]], small: Mapping[str, Tensor]) -> Stated:
        words, scales, bits = shapes["qweight"], shapes["scales"], self.bits
        if len(words) != 2 or len(scales) != 2 or words[0] * 32 % bits:
            raise ValueError(f"{layer}: qweight has the shape {list(words)} and scales {list(scales)}, but {bits} bits "
                             f"take (D_in * {bits} / 32, D_out) and (groups, D_out)")
        D_in, D_out = words[0] * 32 // bits, words[1]
        n_in = self.group_size or D_in
        check_shapes(layer, shapes, {"scales": (D_in // n_in, D_out), "qzeros": (D_in // n_in, D_out * bits // 32)},
                     f"{D_in} inputs, {D_out} outputs and {bits} bits in groups of {n_in}")
        if D_in % n_in or D_out * bits % 32:
            raise ValueError(f"{layer}: {D_in} inputs and {D_out} outputs do not fill groups of {n_in} and whole words "
                             f"of {bits}-bit zeros")
        if self.desc_act and n_in < D_in and "g_idx" not in small:
            raise ValueError(f"{layer}: g_idx is missing, but desc_act is true: the group of each input is not known")
        check_order(layer, small.get("g_idx"), D_in, n_in)
        return Stated(D_out, D_in, bits, Block(n_in, 1), INTEGER)

    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        codes = parts["qweight"].T.flatten().view(torch.uint8)
        each = sum(1 << i for i in range(0, 32, stated.bits)) if self.by_words else 0
        zeros = unpack_rows(parts["qzeros"] + each * (self.version == 1), stated.bits, stated.D_out)
        if self.version == 1 and not self.by_words:
            zeros = zeros + 1 & 2 ** stated.bits - 1
        grid = Grid(levels_of(stated.bits), parts["scales"].T.contiguous(), ZeroPoints.of(zeros.T, stated.bits),
                    stated.block, stated.bits)
        return QuantLinear(stated.D_out, stated.D_in, codes, grid)

    # ---- writing

    @classmethod
    def setting_for(cls, stated: Stated) -> IntegerSetting:
        if stated.D_in * stated.bits % 32 or stated.D_out * stated.bits % 32:
            raise ValueError(f"{stated.D_in} inputs and {stated.D_out} outputs of {stated.bits} bits do not fill whole "
                             f"words of 32 bits")
        return IntegerSetting.of(stated, "GPTQ", BITS)

    @classmethod
    def config_of(cls, settings: dict[str, IntegerSetting], dense: Sequence[str] = ()) -> dict:
        """Layers of different sizes are refused: `dynamic` would state them, but few readers read it."""
        whole = all(setting.whole_rows for setting in settings.values())
        sizes = {name: (setting.bits, -1 if whole else setting.group) for name, setting in settings.items()}
        (first, size), *others = sizes.items()
        if different := [f"{name}: {bits} bits in groups of {group}" for name, (bits, group) in others
                         if (bits, group) != size]:
            raise ValueError(f"GPTQ has one number of bits and one group for all layers, but {first} has {size[0]} "
                             f"bits in groups of {size[1]}, {different[0]}")
        symmetric = all(setting.symmetric for setting in settings.values())
        stated = {"quant_method": cls.name, "bits": size[0], "group_size": size[1], "sym": symmetric, "desc_act": False,
                  "checkpoint_format": "gptq" if symmetric else "gptq_v2", "lm_head": False}
        return {CONFIG: stated | ({"dynamic": {f"-:{re.escape(name)}$": {} for name in dense}} if dense else {})}

    def write(self, name: str, layer: QuantLinear, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The usual type of scales has 16 bits."""
        held = Integers.of(layer, self.group_size, self.symmetric)
        groups = torch.arange(layer.in_features, dtype=torch.int32) // (self.group_size or layer.in_features)
        zeros = held.zeros.T - int(self.version == 1)
        return {"qweight": pack_rows(held.codes, self.bits).T.contiguous(), "qzeros": pack_rows(zeros, self.bits),
                **in_type({"scales": held.scale.T.contiguous()}, dtype or of_16_bits(layer)), "g_idx": groups}
