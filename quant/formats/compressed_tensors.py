"""compressed-tensors' format pack-quantized, as LLM Compressor writes it for vLLM.

    W_hat = scale * (codes - 2^(bits - 1))      symmetric
    W_hat = scale * (codes - zeros)             asymmetric

codes 0 .. 2^bits - 1, groups of group_size inputs x 1 output, or one group for all inputs (`strategy: channel`).

| tensor | type | shape |
|---|---|---|
| `NAME.weight_packed` | int32 | (D_out, D_in * bits / 32): the codes of a row, the first in the lowest bits |
| `NAME.weight_scale` | float16, bfloat16 or float32 | (D_out, D_in / group_size) |
| `NAME.weight_zero_point` | int32 | (D_out * bits / 32, D_in / group_size): asymmetric only; the first output lowest |
| `NAME.weight_shape` | int64 or int32 | (2,): D_out, D_in |
| `NAME.weight_g_idx` | int32 | (D_in,): the group of each input, if inputs were reordered |

The library counts codes and zeros from -2^(bits - 1), and adds 2^(bits - 1) to both before it packs them. Read as
bytes, `weight_packed` is what `quant.packing` packs. config.json states `config_groups`; a layer's bits and group
follow from its shapes, and must be those of one of the groups.
"""
from collections import Counter
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
    NONE,
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
    stated_of,
    unpack_rows,
)
from quant.grid import Block, Grid
from quant.linear import QuantLinear

BITS = (2, 3, 4, 5, 6, 8)
LAYOUT = "pack-quantized"
UNREAD = ("kv_cache_scheme", "sparsity_config", "transform_config")  # of the model
ACTIVATIONS = ("input_activations", "output_activations")            # of a group


@dataclass(frozen=True)
class Scheme:
    """What one of the config_groups states of its weights."""
    bits: int
    group_size: int | None  # None: all inputs
    symmetric: bool

    @classmethod
    def of(cls, stated: object, where: str) -> "Scheme":
        """Raises ValueError, naming the key, for settings that are not read."""
        if not isinstance(stated, dict) or not isinstance(weights := stated.get("weights"), dict):
            raise ValueError(f"{where}: states no weights")
        for key in ACTIVATIONS:
            if stated.get(key):
                raise ValueError(f"{where}: {key} are quantized, and only weights are read")
        if stated.get("format") is not None:
            one_of(stated, "format", (LAYOUT,), where)
        one_of(weights, "type", ("int",), where, usual="int")
        one_of(weights, "dynamic", (False,), where, usual=False)
        bits = one_of(weights, "num_bits", BITS, where)
        usual = "channel" if weights.get("group_size") in (None, -1) else "group"
        strategy = one_of(weights | {"strategy": weights.get("strategy") or usual}, "strategy", ("group", "channel"),
                          where)
        symmetric = one_of(weights, "symmetric", (True, False), where, usual=True)
        return cls(bits, group_size(weights, where) if strategy == "group" else None, symmetric)

    def __str__(self) -> str:
        """`str(Scheme(4, 64, True)) == "4 bits in groups of 64 without zero points"`"""
        blocks = f"groups of {self.group_size}" if self.group_size else "whole rows"
        return f"{self.bits} bits in {blocks} {'without' if self.symmetric else 'with'} zero points"

    def n_in(self, D_in: int) -> int:
        return self.group_size or D_in

    def to_json(self, targets: list[str]) -> dict:
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "group_size": self.group_size,
                   "strategy": "group" if self.group_size else "channel", "dynamic": False}
        return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


@dataclass(frozen=True)
class CompressedTensors(StoredFormat):
    schemes: tuple[Scheme, ...]
    name = "compressed-tensors"
    parts = {"weight_packed": ("I32",), "weight_scale": FLOATS, "weight_shape": ("I64", "I32")}
    optional = {"weight_zero_point": ("I32",), "weight_g_idx": ("I32",)}
    small = ("weight_shape", "weight_g_idx")
    real_offsets = False

    @classmethod
    def of(cls, config: dict) -> "CompressedTensors | None":
        """Raises ValueError, naming the key, for settings that are not read."""
        stated = settings_by("compressed-tensors", config)
        if stated is None:
            return None
        one_of(stated, "format", (LAYOUT, "mixed-precision"))
        for key in UNREAD:
            dense = isinstance(stated.get(key), dict) and stated[key].get("format") == "dense"
            if stated.get(key) and not dense:
                raise ValueError(f"{CONFIG}: {key} is stated, and only plain k-bit weights are read")
        groups = stated.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise ValueError(f"{CONFIG}: config_groups is {str(groups)[:60]}, but must name the groups of layers")
        return cls(tuple(Scheme.of(group, f"{CONFIG}, config_groups, {name[:60]}") for name, group in groups.items()))

    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]], small: Mapping[str, Tensor]) -> Stated:
        words, sizes = shapes["weight_packed"], small["weight_shape"].flatten().tolist()
        if len(words) != 2 or len(sizes) != 2 or sizes[0] != words[0] or sizes[1] <= 0:
            raise ValueError(f"{layer}: weight_shape is {sizes[:4]}, and weight_packed has the shape {list(words)}; "
                             f"they must be D_out, D_in and (D_out, D_in * bits / 32)")
        D_out, D_in = sizes
        scheme = self.scheme_for(layer, shapes, D_out, D_in)
        bits, n_in = scheme.bits, scheme.n_in(D_in)
        check_order(layer, small.get("weight_g_idx"), D_in, n_in)
        if scheme.symmetric:
            return Stated(D_out, D_in, bits, Block(n_in, 1), NONE, levels_of(bits) - 2 ** (bits - 1))
        check_shapes(layer, shapes, {"weight_zero_point": (-(-D_out * bits // 32), D_in // n_in)},
                     f"{D_out} outputs and {D_in // n_in} groups of {bits} bits")
        return Stated(D_out, D_in, bits, Block(n_in, 1), INTEGER)

    def scheme_for(self, layer: str, shapes: dict[str, tuple[int, ...]], D_out: int, D_in: int) -> Scheme:
        """The config group that these shapes fit. Raises ValueError, with the layer, if none does."""
        words, scales, symmetric = shapes["weight_packed"], shapes["weight_scale"], "weight_zero_point" not in shapes
        for scheme in self.schemes:
            if (words[1] * 32, scales, symmetric) == (D_in * scheme.bits, (D_out, D_in // scheme.n_in(D_in)),
                                                      scheme.symmetric):
                return scheme
        raise ValueError(f"{layer}: {D_out} x {D_in} weights in {list(words)} words with scales of {list(scales)}, "
                         f"{'without' if symmetric else 'with'} zero points, are none of the stated config_groups: "
                         f"{'; '.join(map(str, self.schemes))}")

    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        offset: Tensor | ZeroPoints = torch.zeros(1, 1)
        if stated.offset == INTEGER:
            zeros = unpack_rows(parts["weight_zero_point"].T, stated.bits, stated.D_out)
            offset = ZeroPoints.of(zeros.T, stated.bits)
        codes = parts["weight_packed"].flatten().view(torch.uint8)
        grid = Grid(stated.values(), parts["weight_scale"], offset, stated.block, stated.bits)
        return QuantLinear(stated.D_out, stated.D_in, codes, grid)

    # ---- writing

    @classmethod
    def setting_for(cls, stated: Stated) -> Scheme:
        setting = IntegerSetting.of(stated, cls.name, BITS)
        if stated.D_in * stated.bits % 32:
            raise ValueError(f"{stated.D_in} codes of {stated.bits} bits do not fill whole words of 32 bits")
        return Scheme(stated.bits, None if setting.whole_rows else setting.group, setting.symmetric)

    @classmethod
    def config_of(cls, settings: dict[str, Scheme], dense: Sequence[str] = ()) -> dict:
        """The usual scheme is for every linear layer; layers with another one are named. lm_head is a linear layer of
        transformers also if the file has none of its own."""
        usual, *others = (scheme for scheme, _ in Counter(settings.values()).most_common())
        groups = {"group_0": usual.to_json(["Linear"])}
        for i, scheme in enumerate(others, 1):
            groups[f"group_{i}"] = scheme.to_json([name for name, other in settings.items() if other == scheme])
        ignore = [*dense, *({"lm_head"} - {*dense, *settings})]
        return {CONFIG: {"quant_method": cls.name, "format": LAYOUT, "quantization_status": "compressed",
                         "config_groups": groups, "ignore": ignore}}

    def write(self, name: str, layer: QuantLinear, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The usual type of scales has 16 bits."""
        scheme = self.setting_for(stated_of(layer))
        held = Integers.of(layer, scheme.group_size, scheme.symmetric)
        zeros = {} if scheme.symmetric else {"weight_zero_point": pack_rows(held.zeros.T, scheme.bits).T.contiguous()}
        return {"weight_packed": pack_rows(held.codes, scheme.bits), "weight_shape": torch.tensor(held.codes.shape),
                **in_type({"weight_scale": held.scale.contiguous()}, dtype or of_16_bits(layer)), **zeros}
