"""The block types of GGUF files that are Eq. 1 as they stand, in blocks of 32x1: codes, scale and offset are the file's own.

| type | levels | scale | offset | bytes of 32 weights |
|---|---|---|---|---|
| Q4_1 | 0 .. 15 | d | m | d, m, and 16 bytes: weight i in the low half of byte i, weight 16 + i in the high half |
| Q4_0 | -8 .. 7 | d, which may be negative | 0 | d, and 16 bytes as above |
| Q8_0 | -128 .. 127 | d | 0 | d, and 32 signed bytes |

d and m are float16. d * level has at most 19 significant bits, so that float32 holds it exactly and rounds once, in the sum: what
`dequantize` gives is what llama.cpp computes, bit for bit but for the sign of a zero.
"""
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.factors import ZeroPoints
from quant.grid import Block, Grid, QuantizedWeight
from quant.packing import packed_bytes

BLOCK = Block(32, 1)
HALF = 2       # bytes of a float16
ROWS = 4096    # dequantized at a time


@dataclass(frozen=True)
class BlockType:
    bits: int
    lowest: int       # level of code 0
    has_offset: bool

    @property
    def bytes(self) -> int:
        """Of a block: `BLOCK_TYPES["Q4_1"].bytes == 20`."""
        return HALF * (1 + self.has_offset) + packed_bytes(BLOCK.n_in, self.bits)

    def levels(self) -> Tensor:
        return torch.arange(self.lowest, self.lowest + 2 ** self.bits, dtype=torch.float32)

    def shapes(self, D_out: int, D_in: int) -> dict[str, tuple[int, ...]]:
        """Of the buffers of a `QuantLinear` that holds such a weight."""
        factors = (D_out, D_in // BLOCK.n_in)
        return {"codes": (packed_bytes(D_out * D_in, self.bits),), "levels": (2 ** self.bits,), "scale": factors,
                "offset": factors if self.has_offset else (1, 1)}


BLOCK_TYPES = {"Q4_0": BlockType(4, -8, False), "Q4_1": BlockType(4, 0, True), "Q8_0": BlockType(8, -128, False)}


def quantized_weight(rows: Tensor, kind: BlockType) -> QuantizedWeight:
    """rows: (D_out, bytes of a row), uint8, as the file holds them."""
    blocks = rows.unflatten(1, (-1, kind.bytes))
    offset = float16_at(blocks, HALF) if kind.has_offset else torch.zeros(1, 1, dtype=torch.float16)
    stored = blocks[..., HALF * (1 + kind.has_offset):]
    codes = codes_of_halves(stored) if kind.bits == 4 else codes_of_signed(stored)
    return QuantizedWeight(codes.flatten(1), Grid(kind.levels(), float16_at(blocks, 0), offset, BLOCK, kind.bits))


def float16_at(blocks: Tensor, place: int) -> Tensor:
    """The float16 that begins at this byte of each block: (D_out, D_in/32)."""
    return blocks[..., place:place + HALF].contiguous().view(torch.float16).squeeze(-1)


def codes_of_halves(stored: Tensor) -> Tensor:
    """(..., 16) bytes -> (..., 32) codes: the low halves, then the high ones. `[0x21, 0x43] -> [1, 3, 2, 4]`."""
    return torch.cat((stored & 0xF, stored >> 4), dim=-1)


def codes_of_signed(stored: Tensor) -> Tensor:
    """Signed bytes -> codes above the lowest level: `[-128, 0, 127]`, read as uint8, `-> [0, 128, 255]`."""
    return stored ^ 0x80


def dense_rows(rows: Tensor, kind: BlockType) -> Tensor:
    """The dequantized weight in float32, which loses nothing (float16 and bfloat16 would). Some rows at a time: an embedding
    has very many."""
    D_in = rows.shape[1] // kind.bytes * BLOCK.n_in
    dense = torch.empty(len(rows), D_in)
    for part, target in zip(rows.split(ROWS), dense.split(ROWS)):
        target.copy_(quantized_weight(part, kind).dequantize())
    return dense


# ---- and back -----------------------------------------------------------------------------------------------------

def fitting_type(levels: Tensor, bits: int, block: Block, has_offset: bool) -> str:
    """The type whose blocks hold every weight on such a grid. Levels that are whole numbers one apart, from `low` on, are codes from 0 on with
    an offset that is larger by scale * low:

        scale * (low + code) + offset = d * code + m,   d = scale,   m = offset + scale * low

    so that 4 bits with an offset are Q4_1 whatever `low` is; without one, Q4_0 (levels -8 .. 7 or fewer of them) and Q8_0. A larger block is
    several of 32x1 with the same scale. Raises ValueError naming what does not fit."""
    if block.n_in % BLOCK.n_in:
        raise ValueError(f"blocks of {block} (n_in x n_out) do not fall into GGUF's, which are {BLOCK}")
    low = int(levels[0])
    if not torch.equal(levels, torch.arange(low, low + len(levels), dtype=levels.dtype, device=levels.device)):
        raise ValueError(f"levels that are no whole numbers ({levels[0]:.4g}, {levels[1]:.4g}, ...) have no GGUF type of d * code + m")
    for name, kind in BLOCK_TYPES.items():
        inside = kind.lowest <= low and low + len(levels) <= kind.lowest + 2 ** kind.bits
        if kind.bits == bits and (kind.has_offset or (inside and not has_offset)):
            return name
    raise ValueError(f"{bits} bits {'with' if has_offset else 'without'} an offset are none of GGUF's types here: "
                     f"Q4_1 is 4 bits with or without one, Q8_0 is 8 bits without")


def in_file_blocks(weight: QuantizedWeight, kind: BlockType) -> QuantizedWeight:
    """The weight with the type's own levels, in blocks of 32x1, d and m in float16: the one rounding there is. Where d is float16 already
    (all grids but merged PEQA's), only m is rounded. Raises ValueError for factors beyond float16."""
    grid = weight.grid
    low, block = grid.levels[0], grid.block
    scale = grid.factors()[0].half()
    _, offset = (replace(grid, scale=scale) if isinstance(grid.offset, ZeroPoints) else grid).factors()
    shape = (len(weight.codes), weight.codes.shape[1] // BLOCK.n_in)
    scale, offset = in_small_blocks(scale, block, shape), in_small_blocks(offset, block, shape)
    codes = weight.codes
    if kind.has_offset:
        offset = (offset.double() + scale.double() * low.double()).half()
    else:
        codes, offset = (codes.int() + int(low) - kind.lowest).to(torch.uint8), torch.zeros(1, 1, dtype=torch.float16)
    if not (scale.isfinite().all() and offset.isfinite().all()):
        raise ValueError("a scale or an offset is beyond float16, which GGUF keeps them in")
    return QuantizedWeight(codes, Grid(kind.levels(), scale, offset, BLOCK, kind.bits))


def in_small_blocks(factor: Tensor, block: Block, shape: tuple[int, int]) -> Tensor:
    """One value a block -> one for each 32x1 inside it: `[[a, b]]` at 64x2 -> `[[a, a, b, b], [a, a, b, b]]`. `shape`: what comes out."""
    if factor.shape == (1, 1):
        return factor.expand(shape)
    return factor.repeat_interleave(block.n_out, 0).repeat_interleave(block.n_in // BLOCK.n_in, 1).view(shape)


def stored_rows(weight: QuantizedWeight, kind: BlockType) -> Tensor:
    """The inverse of `quantized_weight`: (D_out, bytes of a row), uint8, of a weight as `in_file_blocks` has it."""
    blocks = weight.codes.unflatten(1, (-1, BLOCK.n_in))
    factors = [weight.grid.scale, weight.grid.offset] if kind.has_offset else [weight.grid.scale]
    stored = halves_of_codes(blocks) if kind.bits == 4 else codes_of_signed(blocks)  # its own inverse
    return torch.cat([*(factor.contiguous()[..., None].view(torch.uint8) for factor in factors), stored], dim=-1).flatten(1)


def halves_of_codes(codes: Tensor) -> Tensor:
    """(..., 32) codes -> (..., 16) bytes: `[1, 3, 2, 4] -> [0x21, 0x43]`."""
    low, high = codes.chunk(2, dim=-1)
    return low | high << 4
