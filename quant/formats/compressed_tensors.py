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
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.factors import ZeroPoints
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
    levels_of,
    one_of,
    settings_by,
    unpack_rows,
)
from quant.grid import Block, Grid
from quant.linear import QuantLinear

BITS = (4, 8)
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

    def n_in(self, D_in: int) -> int:
        return self.group_size or D_in


@dataclass(frozen=True)
class CompressedTensors(StoredFormat):
    schemes: tuple[Scheme, ...]
    name = "compressed-tensors"
    parts = {"weight_packed": ("I32",), "weight_scale": FLOATS, "weight_shape": ("I64", "I32")}
    optional = {"weight_zero_point": ("I32",), "weight_g_idx": ("I32",)}
    small = ("weight_shape", "weight_g_idx")

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
        symmetric = "weight_zero_point" not in shapes
        scheme = next((scheme for scheme in self.schemes if words[1] * 32 == D_in * scheme.bits
                       and shapes["weight_scale"] == (D_out, D_in // scheme.n_in(D_in))
                       and scheme.symmetric == symmetric), None)
        if scheme is None:
            raise ValueError(f"{layer}: {D_out} x {D_in} weights in {list(words)} words with scales of "
                             f"{list(shapes['weight_scale'])}, {'without' if symmetric else 'with'} zero points, are "
                             f"none of the stated config_groups: {', '.join(map(str, self.schemes))}")
        bits, n_in = scheme.bits, scheme.n_in(D_in)
        check_order(layer, small.get("weight_g_idx"), D_in, n_in)
        if symmetric:
            return Stated(D_out, D_in, bits, Block(n_in, 1), NONE, levels_of(bits) - 2 ** (bits - 1))
        check_shapes(layer, shapes, {"weight_zero_point": (-(-D_out * bits // 32), D_in // n_in)},
                     f"{D_out} outputs and {D_in // n_in} groups of {bits} bits")
        return Stated(D_out, D_in, bits, Block(n_in, 1), INTEGER)

    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        offset: Tensor | ZeroPoints = torch.zeros(1, 1)
        if stated.offset == INTEGER:
            zeros = unpack_rows(parts["weight_zero_point"].T, stated.bits, stated.D_out)
            offset = ZeroPoints.of(zeros.T, stated.bits)
        codes = parts["weight_packed"].flatten().view(torch.uint8)
        grid = Grid(stated.values(), parts["weight_scale"], offset, stated.block, stated.bits)
        return QuantLinear(stated.D_out, stated.D_in, codes, grid)
