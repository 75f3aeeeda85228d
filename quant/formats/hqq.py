"""HQQ's format: a scale and a real zero for each group of inputs.

    W_hat = scale * (codes - zero) = scale * codes + offset,   offset = -scale * zero in float32

codes 0 .. 2^nbits - 1, groups of group_size inputs x 1 output (`axis: 1`; `axis: 0` groups outputs and is refused).

| tensor | type | shape |
|---|---|---|
| `NAME.W_q` | uint8; int32 for 3 bits | (G / codes of a number, group_size), G = D_out * D_in / group_size groups |
| `NAME.scale`, `NAME.zero` | float16, bfloat16 or float32 | (G, 1) |
| `NAME.nbits`, `.group_size`, `.axis`, `.view_as_float`, `.shape` | int32, int64 or uint8 | one number; D_out, D_in |

A number of `W_q` holds codes of groups that lie G / codes apart, the first group in the highest bits: two codes of 4
bits, four of 2 bits, ten of 3 bits. Codes of 5, 6 and 8 bits take a byte. The codes are packed again.

For float16 factors, whose product float32 holds, the weights are those of HQQ computed in float32. Layers also hold
other settings of the quantizer, which change no weight.
"""
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.formats.stored import CONFIG, FLOATS, Stated, StoredFormat, check_shapes, levels_of, settings_by
from quant.grid import Block, Grid
from quant.linear import QuantLinear
from quant.packing import pack

SHIFTS = {2: (6, 4, 2, 0), 3: tuple(range(27, -1, -3)), 4: (4, 0), 5: (0,), 6: (0,), 8: (0,)}  # of each code
WHOLE = ("I32", "I64", "U8")
NUMBERS = ("nbits", "group_size", "axis", "view_as_float")
OTHERS = ("packing", "unpack_view_dtype", "quant_scale", "quant_zero", "compute_dtype", "offload_meta",
          "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero")


@dataclass(frozen=True)
class HQQ(StoredFormat):
    name = "hqq"
    parts = {"W_q": ("U8", "I32"), "scale": FLOATS, "zero": FLOATS, **dict.fromkeys((*NUMBERS, "shape"), WHOLE)}
    optional = dict.fromkeys(OTHERS, WHOLE)
    small = (*NUMBERS, "shape")

    @classmethod
    def of(cls, config: dict) -> "HQQ | None":
        """Raises ValueError for settings that are not read."""
        stated = settings_by("hqq", config)
        if stated is None:
            return None
        if "view_as_float': True" in str(stated):
            raise ValueError(f"{CONFIG}: view_as_float is true, and only codes that are stored as integers are read")
        return cls()

    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]], small: Mapping[str, Tensor]) -> Stated:
        numbers = {name: small[name].flatten().tolist() for name in self.small}
        if any(len(numbers[name]) != 1 for name in NUMBERS) or len(numbers["shape"]) != 2 or \
                min(*numbers["shape"], *numbers["group_size"]) <= 0:
            raise ValueError(f"{layer}: {', '.join(NUMBERS)} must each be one number, and shape D_out, D_in; they are "
                             f"{str(numbers)[:200]}")
        (bits,), (group,), (axis,), (as_float,) = (numbers[name] for name in NUMBERS)
        D_out, D_in = numbers["shape"]
        if bits not in SHIFTS or axis != 1 or as_float or D_in % group:
            raise ValueError(f"{layer}: nbits is {bits}, axis {axis}, view_as_float {as_float}, group_size {group} of "
                             f"{D_in} inputs, but only bits {', '.join(map(str, SHIFTS))}, axis 1, view_as_float 0 and "
                             f"groups that divide a row are read")
        groups = D_out * D_in // group
        check_shapes(layer, shapes, {"W_q": (-(-groups // len(SHIFTS[bits])), group), "scale": (groups, 1),
                                     "zero": (groups, 1)},
                     f"{D_out} x {D_in} weights of {bits} bits in groups of {group}")
        return Stated(D_out, D_in, bits, Block(group, 1))

    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        bits = stated.bits
        mask = 255 if len(SHIFTS[bits]) == 1 else 2 ** bits - 1  # a byte too large for its bits is not cut, but refused
        codes = torch.cat([(parts["W_q"] >> shift & mask).to(torch.uint8) for shift in SHIFTS[bits]])
        scale, zero = (parts[part].view(stated.D_out, -1) for part in ("scale", "zero"))
        grid = Grid(levels_of(bits), scale, -scale.float() * zero.float(), stated.block, bits)
        return QuantLinear(stated.D_out, stated.D_in, pack(codes.flatten()[:stated.D_out * stated.D_in], bits), grid)
