"""The K types of GGUF that are Eq. 1: superblocks of 256 weights, in blocks that have a scale and an offset each.

| type | block | levels | bytes of a superblock, in order |
|---|---|---|---|
| Q4_K | 32x1 | 0 .. 15 | d, dmin, 12 bytes of s_j and m_j, 128 bytes of codes |
| Q2_K | 16x1 | 0 .. 3 | 16 bytes of s_j (low half) and m_j (high half), 64 bytes of codes, d, dmin |

    scale_j = d * s_j,    offset_j = -dmin * m_j

d and dmin are float16. s_j and m_j are integers of 6 bits (Q2_K: 4). Both products have at most 17 significant bits,
and scale * code at most 21: float32 holds them exactly. `dequantize` therefore returns what llama.cpp computes.

A trained offset is no multiple of dmin. It has no place in these types, so they are read and never written.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.gguf_blocks import HALF, float16_at
from quant.grid import Block, Grid, QuantizedWeight
from quant.packing import packed_bytes

SUPERBLOCK = 256  # weights


@dataclass(frozen=True)
class SuperBlockType:
    """One row of the table. It has the members of `gguf_blocks.BlockType` that reading needs."""
    name: str
    bits: int
    n_in: int  # weights of a block
    bytes: int
    weights: int = SUPERBLOCK

    @property
    def block(self) -> Block:
        return Block(self.n_in, 1)

    def levels(self) -> Tensor:
        return torch.arange(2.0 ** self.bits)

    def shapes(self, D_out: int, D_in: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the buffers of a `QuantLinear` that holds such a weight."""
        factors = (D_out, D_in // self.n_in)
        return {"codes": (packed_bytes(D_out * D_in, self.bits),), "levels": (2 ** self.bits,), "scale": factors,
                "offset": factors}

    def quantized_weight(self, rows: Tensor) -> QuantizedWeight:
        """The weight that a file stores as `rows`, (D_out, bytes of a row), uint8."""
        codes, scale, offset = PARTS[self.name](rows.unflatten(1, (-1, self.bytes)))
        grid = Grid(self.levels(), scale.flatten(1), offset.flatten(1), self.block, self.bits)
        return QuantizedWeight(codes.flatten(1), grid)


def factors(stored: Tensor, place: int, s: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """d * s_j and -dmin * m_j, float32, for d and dmin at byte `place` and at the float16 behind it."""
    d, dmin = (float16_at(stored, at).float()[..., None] for at in (place, place + HALF))
    return d * s, -(dmin * m)


def parts_of_q4_k(stored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 144) bytes -> codes (..., 256), scale and offset (..., 8). A run of 32 bytes holds two blocks: the first in
    its low halves, the second in its high halves."""
    scale, offset = factors(stored, 0, *six_bit_pairs(stored[..., 4:16]))
    runs = stored[..., 16:].unflatten(-1, (4, 1, 32))
    return torch.cat((runs & 0xF, runs >> 4), dim=-2).flatten(-3), scale, offset


def six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 12) bytes -> s and m, (..., 8) each. The first four of each lie in the low 6 bits of bytes 0 .. 3 and
    4 .. 7. The last four have their low halves in bytes 8 .. 11, and their high 2 bits on top of bytes 0 .. 7."""
    first, second, last = packed.split(4, dim=-1)
    s = torch.cat((first & 0x3F, last & 0xF | first >> 6 << 4), dim=-1)
    m = torch.cat((second & 0x3F, last >> 4 | second >> 6 << 4), dim=-1)
    return s, m


def parts_of_q2_k(stored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 84) bytes -> codes (..., 256), scale and offset (..., 16). A run of 32 bytes holds 128 weights: 32 in the
    lowest 2 bits of each byte, then 32 in the next."""
    scale, offset = factors(stored, 80, stored[..., :16] & 0xF, stored[..., :16] >> 4)
    runs = stored[..., 16:80].unflatten(-1, (2, 1, 32))
    return torch.cat([runs >> shift & 3 for shift in (0, 2, 4, 6)], dim=-2).flatten(-3), scale, offset


PARTS = {"Q4_K": parts_of_q4_k, "Q2_K": parts_of_q2_k}
SUPERBLOCK_TYPES = {kind.name: kind for kind in (SuperBlockType("Q4_K", 4, 32, 144),
                                                 SuperBlockType("Q2_K", 2, 16, 84))}
