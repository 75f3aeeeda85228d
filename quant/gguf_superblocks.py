"""The K types of GGUF are Eq. 1 as well: superblocks of 256 weights, in blocks that have a scale each, and in three
types an offset.

| type | block | levels | bytes of a superblock, in order |
|---|---|---|---|
| Q2_K | 16x1 | 0 .. 3 | 16 bytes of s_j (low half) and m_j (high half), 64 bytes of codes, d, dmin |
| Q3_K | 16x1 | -4 .. 3 | 32 bytes of high bits, 64 bytes of low 2 bits, 12 bytes of s_j, d |
| Q4_K | 32x1 | 0 .. 15 | d, dmin, 12 bytes of s_j and m_j, 128 bytes of codes |
| Q5_K | 32x1 | 0 .. 31 | d, dmin, 12 bytes of s_j and m_j, 32 bytes of high bits, 128 bytes of low halves |
| Q6_K | 16x1 | -32 .. 31 | 128 bytes of low halves, 64 bytes of high 2 bits, 16 bytes of s_j, d |

    scale_j = d * s_j,    offset_j = -dmin * m_j    (Q3_K, Q6_K: 0)

d and dmin are float16. s_j and m_j are integers of 6 bits (Q2_K: 4; Q6_K: a signed byte; Q3_K: -32 .. 31). The products
have at most 18 significant bits, and scale * level at most 23: float32 holds them exactly. `dequantize` therefore
returns what llama.cpp computes.

A trained offset is no multiple of dmin, and has no place in these types. Moved codes have: `with_codes` puts them among
the scales of a file. Nothing else is ever written.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from quant.gguf_blocks import HALF, float16_at
from quant.grid import Block, Grid, QuantizedWeight
from quant.packing import packed_bytes

SUPERBLOCK = 256  # weights
Parts = tuple[Tensor, Tensor, Tensor]  # codes (..., 256), scale and offset (..., blocks of a superblock)


@dataclass(frozen=True)
class SuperBlockType:
    """One row of the table. It has the members of `gguf_blocks.BlockType` that reading needs. The levels are
    consecutive integers. `parts` takes superblocks, (..., bytes), apart."""
    bits: int
    lowest: int  # the level of code 0
    has_offset: bool
    n_in: int    # weights of a block
    bytes: int
    parts: Callable[[Tensor], Parts]
    weights: int = SUPERBLOCK

    @property
    def block(self) -> Block:
        return Block(self.n_in, 1)

    def levels(self) -> Tensor:
        return torch.arange(self.lowest, self.lowest + 2 ** self.bits, dtype=torch.float32)

    def shapes(self, D_out: int, D_in: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the buffers of a `QuantLinear` that holds such a weight."""
        factors = (D_out, D_in // self.n_in)
        return {"codes": (packed_bytes(D_out * D_in, self.bits),), "levels": (2 ** self.bits,), "scale": factors,
                "offset": factors if self.has_offset else (1, 1)}

    def quantized_weight(self, rows: Tensor) -> QuantizedWeight:
        """The weight that a file stores as `rows`, (D_out, bytes of a row), uint8."""
        codes, scale, offset = self.parts(rows.unflatten(1, (-1, self.bytes)))
        offset = offset.flatten(1) if self.has_offset else NO_OFFSET
        return QuantizedWeight(codes.flatten(1), Grid(self.levels(), scale.flatten(1), offset, self.block, self.bits))


    def with_codes(self, rows: Tensor, codes: Tensor) -> Tensor:
        """`rows` of a file, (D_out, bytes of a row), uint8, with other codes, (D_out, D_in). All other bits stay."""
        where = bits_of_codes(self)
        stored = rows.unflatten(1, (-1, self.bytes))
        bits = (codes.unflatten(1, (-1, SUPERBLOCK))[..., where.code].to(torch.int16) >> where.of_code & 1) << where.bit
        placed = torch.zeros(stored.shape, dtype=torch.int16).index_add_(-1, where.byte, bits)
        return (stored & where.kept | placed.to(torch.uint8)).flatten(1)


@dataclass(frozen=True)
class BitsOfCodes:
    """Bit `of_code` of code `code` is bit `bit` of byte `byte`: four tensors, one number for each bit of a superblock's
    codes. kept: (bytes,), 1 at every other bit."""
    code: Tensor
    of_code: Tensor
    byte: Tensor
    bit: Tensor
    kept: Tensor


@cache
def bits_of_codes(kind: SuperBlockType) -> BitsOfCodes:
    """Found by reading superblocks that have one bit each: what is written cannot differ from what is read."""
    at = torch.arange(8 * kind.bytes)
    single = torch.zeros(len(at), kind.bytes, dtype=torch.uint8)
    single[at, at // 8] = (1 << at % 8).to(torch.uint8)
    value, code = kind.parts(single)[0].max(1)
    found = at[value > 0]
    kept = torch.full((kind.bytes,), 255).index_add_(0, found // 8, -(1 << found % 8))
    return BitsOfCodes(code[found], value[found].float().log2().to(torch.int16), found // 8,
                       (found % 8).to(torch.int16), kept.to(torch.uint8))


NO_OFFSET = torch.zeros(1, 1)


def factors(stored: Tensor, place: int, s: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """d * s_j and -dmin * m_j, float32, for d and dmin at byte `place` and at the float16 behind it."""
    d, dmin = (float16_at(stored, at).float()[..., None] for at in (place, place + HALF))
    return d * s, -(dmin * m)


def shifted(stored: Tensor, shifts: range) -> Tensor:
    """(..., n) bytes -> (..., shifts, n): the bytes, shifted down by each."""
    return stored[..., None, :] >> torch.tensor(shifts, dtype=torch.uint8, device=stored.device)[:, None]


# ---- with offsets -------------------------------------------------------------------------------------------------

def parts_of_q2_k(stored: Tensor) -> Parts:
    """84 bytes. A run of 32 bytes holds 128 weights: 32 in the lowest 2 bits of each byte, then 32 in the next."""
    scale, offset = factors(stored, 80, stored[..., :16] & 0xF, stored[..., :16] >> 4)
    runs = stored[..., 16:80].unflatten(-1, (2, 32))
    return (shifted(runs, range(0, 8, 2)) & 3).flatten(-3), scale, offset


def parts_of_q4_k(stored: Tensor) -> Parts:
    """144 bytes. A run of 32 bytes holds two blocks: the first in its low halves, the second in its high halves."""
    scale, offset = factors(stored, 0, *six_bit_pairs(stored[..., 4:16]))
    return halves(stored[..., 16:]).flatten(-2), scale, offset


def parts_of_q5_k(stored: Tensor) -> Parts:
    """176 bytes. Bit j of 32 bytes is the high bit of the weights of block j. The low halves lie as in Q4_K."""
    scale, offset = factors(stored, 0, *six_bit_pairs(stored[..., 4:16]))
    high = shifted(stored[..., 16:48], range(8)) & 1
    return (halves(stored[..., 48:]) | high << 4).flatten(-2), scale, offset


def halves(stored: Tensor) -> Tensor:
    """(..., 128) bytes -> (..., 8, 32) codes of 4 bits."""
    return (shifted(stored.unflatten(-1, (4, 32)), range(0, 8, 4)) & 0xF).flatten(-3, -2)


def six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 12) bytes -> s and m, (..., 8) each. The first four of each lie in the low 6 bits of bytes 0 .. 3 and
    4 .. 7. The last four have their low halves in bytes 8 .. 11, and their high 2 bits on top of bytes 0 .. 7."""
    first, second, last = packed.split(4, dim=-1)
    s = torch.cat((first & 0x3F, last & 0xF | first >> 6 << 4), dim=-1)
    m = torch.cat((second & 0x3F, last >> 4 | second >> 6 << 4), dim=-1)
    return s, m


# ---- without offsets ----------------------------------------------------------------------------------------------

def parts_of_q3_k(stored: Tensor) -> Parts:
    """110 bytes. Bit j of 32 bytes is the high bit of the j-th 32 weights. The low 2 bits lie as in Q2_K. Of s_j + 32,
    the low halves of the first 8 lie in the low halves of 8 bytes, those of the last 8 in their high halves, and the
    high 2 bits in 4 more bytes: those of j = 0 .. 3 are the lowest of each."""
    d = float16_at(stored, 108).float()[..., None]
    low = shifted(stored[..., 96:104], range(0, 8, 4)).flatten(-2) & 0xF
    s = low | (shifted(stored[..., 104:108], range(0, 8, 2)).flatten(-2) & 3) << 4
    runs = shifted(stored[..., 32:96].unflatten(-1, (2, 32)), range(0, 8, 2)) & 3
    high = shifted(stored[..., :32], range(8)) & 1
    return (runs.flatten(-3, -2) | high << 2).flatten(-2), d * (s.float() - 32), NO_OFFSET


def parts_of_q6_k(stored: Tensor) -> Parts:
    """210 bytes. 64 bytes hold the low halves of 128 weights: 64 in their low halves, then 64 in their high halves. 32
    bytes hold the high 2 bits of the same weights, as those of Q2_K lie."""
    d = float16_at(stored, 208).float()[..., None]
    low = shifted(stored[..., :128].unflatten(-1, (2, 64)), range(0, 8, 4)) & 0xF
    high = shifted(stored[..., 128:192].unflatten(-1, (2, 32)), range(0, 8, 2)) & 3
    return low.flatten(-3) | high.flatten(-3) << 4, d * stored[..., 192:208].view(torch.int8), NO_OFFSET


SUPERBLOCK_TYPES = {
    "Q2_K": SuperBlockType(2, 0, True, 16, 84, parts_of_q2_k),
    "Q3_K": SuperBlockType(3, -4, False, 16, 110, parts_of_q3_k),
    "Q4_K": SuperBlockType(4, 0, True, 32, 144, parts_of_q4_k),
    "Q5_K": SuperBlockType(5, 0, True, 32, 176, parts_of_q5_k),
    "Q6_K": SuperBlockType(6, -32, False, 16, 210, parts_of_q6_k)}
