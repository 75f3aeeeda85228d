"""N-bit codes <-> bytes. The first code takes the lowest bits, and no bit is wasted.

A byte holds four 2-bit codes or two 4-bit codes. Three bytes hold eight 3-bit codes.
"""
import math
from functools import cache

import torch
from torch import Tensor

SUPPORTED_BITS = (2, 3, 4, 8)


def word_shape(bits: int) -> tuple[int, int]:
    """(bytes, codes) of the smallest word of whole bytes and whole codes: `word_shape(3) -> (3, 8)`.

    Raises ValueError for other bits than `SUPPORTED_BITS`."""
    if bits not in SUPPORTED_BITS:
        raise ValueError(f"bits={bits} is not one of {', '.join(map(str, SUPPORTED_BITS))}")
    n_bytes = math.lcm(bits, 8) // 8
    return n_bytes, n_bytes * 8 // bits


def packed_bytes(n: int, bits: int) -> int:
    """The number of bytes that `pack` returns for n codes."""
    n_bytes, n_codes = word_shape(bits)
    return -(-n // n_codes) * n_bytes


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes of any shape -> flat uint8 bytes, bits/8 for each code. The last word is padded with 0.

    Raises ValueError for a code that does not fit in `bits`."""
    n_bytes, n_codes = word_shape(bits)
    flat = codes.flatten()
    if flat.numel() and int(flat.max()) >= 2 ** bits:
        raise ValueError(f"code {int(flat.max())} does not fit in {bits} bits")
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % n_codes)).unflatten(0, (-1, n_codes)).int()
    words = (flat << (bits * torch.arange(n_codes, dtype=torch.int32, device=codes.device))).sum(1, dtype=torch.int32)
    shifts = 8 * torch.arange(n_bytes, dtype=torch.int32, device=codes.device)
    return ((words[:, None] >> shifts) & 0xFF).to(torch.uint8).flatten()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: uint8 codes of `shape`."""
    n_bytes, n_codes = word_shape(bits)
    entries = entries_of(torch.arange(2 ** bits, dtype=torch.uint8, device=packed.device), bits)
    codes = torch.empty(len(packed) * 8 // bits, dtype=torch.uint8, device=packed.device)
    index = torch.empty(min(UNPACKED * n_codes, len(codes)) // entries.shape[1], dtype=torch.int64, device=codes.device)
    for part, out in zip(packed.split(UNPACKED * n_bytes), codes.split(UNPACKED * n_codes), strict=True):
        look_up(part, entries, index, out)
    return codes[:math.prod(shape)].view(shape)


# ---- table[codes], without codes ----------------------------------------------------------------------------------

UNPACKED = 1 << 16   # words at a time
CODES_OF_INDEX = {2: 4, 3: 4, 4: 2, 8: 1}  # codes that one index stands for: all of a byte, or half of a 3-byte word
ONE_NUMBER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}  # by bytes
LINES = 8            # gather runs its lines in parallel


def look_up(packed: Tensor, entries: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """out = table[codes], flat, for whole words of packed codes. `entries_of(table, bits)` makes the entries.

    One index stands for several codes, and fetches all of their values as one number: byte 0x21 of 4-bit codes is
    index 0x21, whose entry holds table[1] and table[2]. A code without a value in the table gives NaN; at 8 bits it
    raises RuntimeError. index: int64, overwritten, at least one for each entry of `out`."""
    n = entries.shape[1]
    index = fill_index(index[:len(out) // n], packed)
    size = n * entries.element_size()
    if size not in ONE_NUMBER:  # four float64
        return torch.index_select(entries, 0, index, out=out.view(-1, n))
    lines = LINES if len(index) % LINES == 0 else 1
    entries, found = entries.view(ONE_NUMBER[size]).T, out.view(ONE_NUMBER[size])
    return torch.gather(entries.expand(lines, -1), 1, index.view(lines, -1), out=found.view(lines, -1))


def entries_of(table: Tensor, bits: int) -> Tensor:
    """(indices, codes of an index): entry i holds the values of the codes that index i stands for."""
    codes = codes_of_indices(bits, table.device)
    if codes.shape[1] == 1:
        return table[:, None]
    if missing := 2 ** bits - len(table):
        table = torch.nn.functional.pad(table, (0, missing), value=math.nan)
    return table.index_select(0, codes.flatten()).view(codes.shape)


@cache
def codes_of_indices(bits: int, device: torch.device) -> Tensor:
    """The codes of every index, lowest bits first: at 4 bits, row 0x21 is [1, 2]."""
    n_codes = CODES_OF_INDEX[bits]
    with torch.inference_mode(False):
        indices = torch.arange(2 ** (bits * n_codes), dtype=torch.int32, device=device)
        shifts = bits * torch.arange(n_codes, dtype=torch.int32, device=device)
        return (indices[:, None] >> shifts) & (2 ** bits - 1)


def fill_index(index: Tensor, packed: Tensor) -> Tensor:
    """A byte is an index. But three bytes of 3-bit codes are two indices of 12 bits: `[0x21, 0x43, 0x65] -> [0x321,
    0x654]`."""
    if len(index) == len(packed):
        return index.copy_(packed)
    first, middle, last = (column.int() for column in packed.view(-1, 3).unbind(1))
    index[0::2] = first | (middle & 0xF) << 8
    index[1::2] = middle >> 4 | last << 4
    return index
