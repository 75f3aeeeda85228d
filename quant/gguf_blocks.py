"""The block types of GGUF files that are exactly Eq. 1 in blocks of 32x1. Codes, scale and offset are read unchanged.

| type | levels | scale | offset | bytes of 32 weights |
|---|---|---|---|---|
| Q4_1 | 0 .. 15 | d | m | d, m, and 16 bytes: weight i in the low half of byte i, weight 16 + i in the high half |
| Q4_0 | -8 .. 7 | d, which may be negative | 0 | d, and 16 bytes as above |
| Q5_1 | 0 .. 31 | d | m | d, m, 4 bytes of high bits (bit i for weight i), and 16 bytes of low halves as above |
| Q5_0 | -16 .. 15 | d, which may be negative | 0 | d, 4 bytes of high bits, and 16 bytes as above |
| Q8_0 | -128 .. 127 | d | 0 | d, and 32 signed bytes |

d and m are float16. d * level has at most 19 significant bits: float32 holds it exactly, and only the sum is rounded.
`dequantize` therefore returns what llama.cpp computes, bit for bit except for the sign of a zero.
"""
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.factors import ZeroPoints
from quant.grid import Block, Grid, QuantizedWeight
from quant.packing import packed_bytes
from quant.quantizer import check_underflow

SIZE = 32      # weights of a block
BLOCK = Block(SIZE, 1)
HALF = 2       # bytes of a float16
HIGH = 4       # bytes of the high bits of 32 codes


@dataclass(frozen=True)
class BlockType:
    """One row of the table. The levels are consecutive integers."""
    bits: int
    lowest: int       # the level of code 0
    has_offset: bool
    block: Block = BLOCK
    weights: int = SIZE  # of what `bytes` counts

    @property
    def bytes(self) -> int:
        """The size of a block: `BLOCK_TYPES["Q4_1"].bytes == 20`."""
        return HALF * (1 + self.has_offset) + packed_bytes(SIZE, self.bits)

    def levels(self) -> Tensor:
        return torch.arange(self.lowest, self.lowest + 2 ** self.bits, dtype=torch.float32)

    def shapes(self, D_out: int, D_in: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the buffers of a `QuantLinear` that holds such a weight."""
        factors = (D_out, D_in // SIZE)
        return {"codes": (packed_bytes(D_out * D_in, self.bits),), "levels": (2 ** self.bits,), "scale": factors,
                "offset": factors if self.has_offset else (1, 1)}

    def quantized_weight(self, rows: Tensor) -> QuantizedWeight:
        """The weight that a file stores as `rows`, (D_out, bytes of a row), uint8."""
        blocks = rows.unflatten(1, (-1, self.bytes))
        offset = float16_at(blocks, HALF) if self.has_offset else torch.zeros(1, 1, dtype=torch.float16)
        stored = blocks[..., HALF * (1 + self.has_offset):]
        codes = CODES[self.bits](stored)
        return QuantizedWeight(codes.flatten(1), Grid(self.levels(), float16_at(blocks, 0), offset, BLOCK, self.bits))


BLOCK_TYPES = {"Q4_0": BlockType(4, -8, False), "Q4_1": BlockType(4, 0, True), "Q5_0": BlockType(5, -16, False),
               "Q5_1": BlockType(5, 0, True), "Q8_0": BlockType(8, -128, False)}


def float16_at(blocks: Tensor, place: int) -> Tensor:
    """The float16 that starts at byte `place` of each block: (D_out, D_in/32)."""
    return blocks[..., place:place + HALF].contiguous().view(torch.float16).squeeze(-1)


def codes_of_halves(stored: Tensor) -> Tensor:
    """(..., 16) bytes -> (..., 32) codes: the low halves, then the high halves. `[0x21, 0x43] -> [1, 3, 2, 4]`."""
    return torch.cat((stored & 0xF, stored >> 4), dim=-1)


def codes_of_bits_and_halves(stored: Tensor) -> Tensor:
    """(..., 4 + 16) bytes -> (..., 32) codes of 5 bits: their high bits, then their low halves."""
    bits, halves = stored.split((HIGH, stored.shape[-1] - HIGH), dim=-1)
    high = bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=stored.device) & 1
    return codes_of_halves(halves) | high.flatten(-2) << 4


def codes_of_signed(stored: Tensor) -> Tensor:
    """Signed bytes -> codes, counted from the lowest level: `[-128, 0, 127]`, viewed as uint8, `-> [0, 128, 255]`."""
    return stored ^ 0x80


CODES = {4: codes_of_halves, 5: codes_of_bits_and_halves, 8: codes_of_signed}  # by bits


# ---- writing ------------------------------------------------------------------------------------------------------

def fitting_type(levels: Tensor, bits: int, block: Block, has_offset: bool) -> str:
    """The type whose blocks hold every weight on such a grid.

    Consecutive integers from `low` on are codes from 0 on, with an offset that is larger by scale * low:

        scale * (low + code) + offset = d * code + m,   d = scale,   m = offset + scale * low

    So 4 and 5 bits with an offset are Q4_1 and Q5_1 for any `low`. Without an offset they are Q4_0 and Q5_0 if the
    levels lie in -8 .. 7 and -16 .. 15, and 8 bits are Q8_0. A larger block becomes several of 32x1 with the same
    scale. Raises ValueError with what does not fit."""
    if block.n_in is None or block.n_in % SIZE:
        raise ValueError(f"blocks of {block} (n_in x n_out) do not fall into GGUF's, which are {BLOCK}")
    low = int(levels[0])
    if not torch.equal(levels, torch.arange(low, low + len(levels), dtype=levels.dtype, device=levels.device)):
        raise ValueError(f"levels that are no whole numbers ({levels[0]:.4g}, {levels[1]:.4g}, ...) have no GGUF type "
                         f"of d * code + m")
    for name, kind in BLOCK_TYPES.items():
        inside = kind.lowest <= low and low + len(levels) <= kind.lowest + 2 ** kind.bits
        if kind.bits == bits and (kind.has_offset or (inside and not has_offset)):
            return name
    raise ValueError(f"{bits} bits {'with' if has_offset else 'without'} an offset are none of GGUF's types here: "
                     f"Q4_1 and Q5_1 are 4 and 5 bits with or without an offset, Q8_0 is 8 bits without")


def in_file_blocks(weight: QuantizedWeight, kind: BlockType) -> QuantizedWeight:
    """The weight with the levels of `kind`, in blocks of 32x1, with d and m in float16.

    Nothing else is rounded. If d is float16 already (all grids but those of a merged PEQA), only m is rounded. Raises
    ValueError for factors beyond float16, and for scales that float16 turns into 0."""
    grid = weight.grid
    low = grid.levels[0]
    exact = grid.factors()[0]
    scale = exact.half()
    check_underflow(exact, scale, len(grid.levels), (exact.abs() * grid.levels.abs().max()).max())
    _, offset = (replace(grid, scale=scale) if isinstance(grid.offset, ZeroPoints) else grid).factors()
    shape = (len(weight.codes), weight.codes.shape[1] // SIZE)
    scale, offset = in_small_blocks(scale, shape), in_small_blocks(offset, shape)
    codes = weight.codes
    if kind.has_offset:
        offset = (offset.double() + scale.double() * low.double()).half()
    else:
        codes, offset = (codes.int() + int(low) - kind.lowest).to(torch.uint8), torch.zeros(1, 1, dtype=torch.float16)
    if not (scale.isfinite().all() and offset.isfinite().all()):
        raise ValueError("a scale or an offset is beyond float16, the type that GGUF stores them in")
    return QuantizedWeight(codes, Grid(kind.levels(), scale, offset, BLOCK, kind.bits))


def in_small_blocks(factor: Tensor, shape: tuple[int, int]) -> Tensor:
    """One value for each block -> one for each 32x1 inside it, (D_out, D_in/32) = shape. At 64x2,
    `[[a, b]] -> [[a, a, b, b], [a, a, b, b]]`."""
    (rows, columns), (D_out, small) = factor.shape, shape
    return factor.repeat_interleave(D_out // rows, 0).repeat_interleave(small // columns, 1)


def stored_rows(weight: QuantizedWeight, kind: BlockType) -> Tensor:
    """The inverse of `BlockType.quantized_weight`: (D_out, bytes of a row), uint8. The weight comes from
    `in_file_blocks`."""
    blocks = weight.codes.unflatten(1, (-1, SIZE))
    scale, offset = weight.grid.factors()
    factors = [scale, offset] if kind.has_offset else [scale]
    stored = STORED[kind.bits](blocks)
    stored_factors = [factor.contiguous()[..., None].view(torch.uint8) for factor in factors]
    return torch.cat([*stored_factors, stored], dim=-1).flatten(1)


def halves_of_codes(codes: Tensor) -> Tensor:
    """(..., 32) codes -> (..., 16) bytes: `[1, 3, 2, 4] -> [0x21, 0x43]`."""
    low, high = codes.chunk(2, dim=-1)
    return low | high << 4


def bits_and_halves_of_codes(codes: Tensor) -> Tensor:
    """The inverse of `codes_of_bits_and_halves`."""
    high = (codes >> 4).unflatten(-1, (HIGH, 8)) << torch.arange(8, dtype=torch.uint8, device=codes.device)
    return torch.cat((high.sum(-1, dtype=torch.uint8), halves_of_codes(codes & 0xF)), dim=-1)


STORED = {4: halves_of_codes, 5: bits_and_halves_of_codes, 8: codes_of_signed}  # the last is its own inverse
