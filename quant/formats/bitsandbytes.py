"""bitsandbytes' 4-bit NormalFloat: an absmax for each block of neighbouring weights.

    W_hat = absmax * quant_map[codes]
    absmax = nested_absmax * nested_quant_map[absmax codes] + nested_offset       with double quantization

| tensor | type | shape |
|---|---|---|
| `NAME.weight` | uint8 | (D_out * D_in / 2, 1): two codes a byte, row by row, the first in the high half |
| `NAME.weight.absmax` | float32; uint8 if nested | (D_out * D_in / blocksize,) |
| `NAME.weight.quant_map` | float32 | (16,) |
| `NAME.weight.nested_absmax` | float32 | (ceil(number of blocks / nested_blocksize),) |
| `NAME.weight.nested_quant_map` | float32 | (256,) |
| `NAME.weight.quant_state.bitsandbytes__nf4` | uint8 | JSON: shape, blocksize, nested_blocksize, nested_offset |

The two halves of each byte are exchanged. A nested absmax becomes a float32 scale: bitsandbytes rounds the product and
the sum, and `DoubleQuantized` rounds once, so its scale would differ in the last bit.
"""
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.formats.stored import CONFIG, FLOATS, NONE, Stated, StoredFormat, check_shapes, one_of
from quant.grid import Block, Grid
from quant.linear import QuantLinear

ABSMAX, MAP, STATE = "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
METHOD = "bitsandbytes"


@dataclass(frozen=True)
class NF4(StoredFormat):
    name = METHOD
    parts = {"weight": ("U8",), ABSMAX: ("U8", *FLOATS), MAP: FLOATS, STATE: ("U8",)}
    optional = dict.fromkeys(NESTED, FLOATS)
    small = (MAP, STATE)

    @classmethod
    def of(cls, config: dict) -> "NF4 | None":
        """Raises ValueError, naming the key, for settings that are not read."""
        stated = config.get(CONFIG)
        flags = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")
        if not isinstance(stated, dict) or stated.get("quant_method", METHOD) != METHOD:
            return None
        if not any(stated.get(flag) for flag in flags):
            return None
        if stated.get("load_in_8bit") or stated.get("_load_in_8bit"):
            raise ValueError(f"{CONFIG}: load_in_8bit is true, but of {METHOD} only 4 bits are read, as nf4")
        one_of(stated, "bnb_4bit_quant_type", ("nf4",), usual="fp4")
        one_of(stated, "bnb_4bit_quant_storage", ("uint8",), usual="uint8")
        return cls()

    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]], small: Mapping[str, Tensor]) -> Stated:
        state = State.of(layer, small[STATE])
        D_out, D_in = state.shape
        if D_in % state.blocksize or shapes[MAP] != (16,):
            raise ValueError(f"{layer}: rows of {D_in} inputs do not fall into blocks of {state.blocksize}, or "
                             f"quant_map has not 16 values: not read")
        blocks = D_out * D_in // state.blocksize
        check_shapes(layer, shapes, {"weight": (D_out * D_in // 2, 1), ABSMAX: (blocks,)},
                     f"{D_out} x {D_in} weights in blocks of {state.blocksize}")
        if state.nested_blocksize:
            if missing := [part for part in NESTED if part not in shapes]:
                raise ValueError(f"{layer}: {missing[0]} is missing, but the absmax is quantized")
            check_shapes(layer, shapes, dict(zip(NESTED, ((-(-blocks // state.nested_blocksize),), (256,)),
                                                 strict=True)), f"{blocks} values of absmax")
        return Stated(D_out, D_in, 4, Block(state.blocksize, 1), NONE, small[MAP].float())

    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        halves = parts["weight"].flatten()
        grid = Grid(stated.values(), absmax_of(parts).view(stated.D_out, -1), torch.zeros(1, 1), stated.block, 4)
        return QuantLinear(stated.D_out, stated.D_in, halves << 4 | halves >> 4, grid)


@dataclass(frozen=True)
class State:
    """What the JSON of a layer says."""
    shape: tuple[int, int]
    blocksize: int
    nested_blocksize: int | None = None  # None: the absmax is not quantized
    nested_offset: float = 0.0

    @classmethod
    def of(cls, layer: str, text: Tensor) -> "State":
        """Raises ValueError, with the layer, for text that is not such JSON."""
        try:
            stated = json.loads(bytes(text.flatten().tolist()))
            one_of(stated, "quant_type", ("nf4",), "quant_state")
            shape, nested = tuple(stated["shape"]), stated.get("nested_blocksize")
            sizes = [*shape, stated["blocksize"], *([] if nested is None else [nested])]
            if len(shape) != 2 or not all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
                raise ValueError(f"shape {shape} in blocks of {stated['blocksize']}, {nested}")
            offset = stated.get("nested_offset", 0.0)
            if nested is not None and not (type(offset) is float and abs(offset) < 3e38):
                raise ValueError(f"nested_offset {offset}")
            return cls(shape, stated["blocksize"], nested, offset)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{layer}: {STATE} does not hold the state of a layer: {str(error)[:200]}") from None


def absmax_of(parts: dict[str, Tensor]) -> Tensor:
    """float32, one for each block, with the roundings of bitsandbytes."""
    absmax = parts[ABSMAX]
    state = State.of("layer", parts[STATE])
    if state.nested_blocksize is None:
        return absmax.float()
    outer, values = (parts[part].float() for part in NESTED)
    outer = outer.repeat_interleave(state.nested_blocksize)[:len(absmax)]
    return values[absmax.int()] * outer + torch.tensor(state.nested_offset, dtype=torch.float32)
