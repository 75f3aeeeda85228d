"""The block types of GGUF files that are Eq. 1 as they stand, in blocks of 32x1: codes, scale and offset are the file's own.

| type | levels | scale | offset | bytes of 32 weights |
|---|---|---|---|---|
| Q4_1 | 0 .. 15 | d | m | d, m, and 16 bytes: weight i in the low half of byte i, weight 16 + i in the high half |
| Q4_0 | -8 .. 7 | d, which may be negative | 0 | d, and 16 bytes as above |
| Q8_0 | -128 .. 127 | d | 0 | d, and 32 signed bytes |

d and m are float16. d * level has at most 19 significant bits, so that float32 holds it exactly and rounds once, in the sum: what
`dequantize` gives is what llama.cpp computes, bit for bit but for the sign of a zero.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

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
