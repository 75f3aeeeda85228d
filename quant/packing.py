"""N-bit codes <-> bytes. The first code takes the lowest bits, and no bit is wasted.

A byte holds four 2-bit codes or two 4-bit codes. Three bytes hold eight 3-bit codes or four 6-bit codes. Five bytes
hold eight 5-bit codes.
"""
import math
from functools import cache

import torch
from torch import Tensor

SUPPORTED_BITS = (2, 3, 4, 5, 6, 8)


def word_shape(bits: int) -> tuple[int, int]:
    """(bytes, codes) of the smallest word of whole bytes and whole codes: `word_shape(3) -> (3, 8)`.

    Raises ValueError for other bits than `SUPPORTED_BITS`."""
    if bits not in SUPPORTED_BITS:
        raise ValueError(f"bits={bits} is not one of {', '.join(map(str, SUPPORTED_BITS))}")
    n_bytes = {3: 3, 5: 5, 6: 3}.get(bits, 1)
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
    number = torch.int32 if n_bytes < 4 else torch.int64  # that holds a word
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % n_codes)).unflatten(0, (-1, n_codes)).to(number)
    words = (flat << (bits * torch.arange(n_codes, dtype=number, device=codes.device))).sum(1, dtype=number)
    shifts = 8 * torch.arange(n_bytes, dtype=number, device=codes.device)
    return ((words[:, None] >> shifts) & 0xFF).to(torch.uint8).flatten()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: uint8 codes of `shape`."""
    if not packed.is_cpu:
        return unpack_plainly(packed, bits)[:math.prod(shape)].to(torch.uint8).view(shape)
    n_bytes, n_codes = word_shape(bits)
    every_code = LookUp(torch.arange(2 ** bits, dtype=torch.uint8, device=packed.device), bits)
    codes = torch.empty(len(packed) * 8 // bits, dtype=torch.uint8, device=packed.device)
    index = every_code.new_index(min(UNPACKED * n_codes, len(codes)))
    for part, out in zip(packed.split(UNPACKED * n_bytes), codes.split(UNPACKED * n_codes), strict=True):
        every_code(part, index, out)
    return codes[:math.prod(shape)].view(shape)


def unpack_plainly(packed: Tensor, bits: int) -> Tensor:
    """All codes by shifts and masks, int32: code i of a word is (word >> bits * i) % 2^bits. (..., bytes) -> (...,
    codes), for whole words."""
    n_bytes, n_codes = word_shape(bits)
    number = torch.int32 if n_bytes < 4 else torch.int64  # that holds a word
    word, *others = packed.unflatten(-1, (-1, n_bytes)).to(number).unbind(-1)
    for i, byte in enumerate(others, 1):
        word = word | byte << 8 * i
    shifts = bits * torch.arange(n_codes, dtype=number, device=packed.device)
    return ((word[..., None] >> shifts) & (2 ** bits - 1)).flatten(-2).int()


# ---- table[codes], without codes ----------------------------------------------------------------------------------

UNPACKED = 1 << 16   # words at a time
# codes that one index stands for: all of a byte, half of a word of three bytes, or a quarter of one of five
CODES_OF_INDEX = {2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 8: 1}
ONE_NUMBER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}  # by bytes
LINES = 8            # gather runs its lines in parallel


class LookUp:
    """table[codes] for packed codes.

    One index stands for several codes, and fetches all of their values as one number: byte 0x21 of 4-bit codes is
    index 0x21, whose entry holds table[1] and table[2]. A code without a value in the table gives NaN; at 8 bits it
    raises RuntimeError."""

    def __init__(self, table: Tensor, bits: int):
        self.codes = CODES_OF_INDEX[bits]
        entries = entries_of(table, bits)
        self.number = ONE_NUMBER.get(self.codes * table.element_size())  # None for four float64
        self.entries = entries.view(self.number).T.expand(LINES, -1) if self.number else entries

    def new_index(self, n: int) -> Tensor:
        """Room for the indices of n codes."""
        return torch.empty(n // self.codes, dtype=torch.int64, device=self.entries.device)

    def __call__(self, packed: Tensor, index: Tensor, out: Tensor) -> None:
        """out = table[codes], flat, for whole words. Overwrites index, which may be longer."""
        index = fill_index(index[:len(out) // self.codes], packed)
        if self.number is None:
            torch.index_select(self.entries, 0, index, out=out.view(-1, self.codes))
            return
        lines = LINES if len(index) % LINES == 0 else 1
        torch.gather(self.entries[:lines], 1, index.view(lines, -1), out=out.view(self.number).view(lines, -1))


def entries_of(table: Tensor, bits: int) -> Tensor:
    """(indices, codes of an index): entry i holds the values of the codes that index i stands for."""
    if CODES_OF_INDEX[bits] == 1:
        return table[:, None]
    if missing := 2 ** bits - len(table):
        table = torch.nn.functional.pad(table, (0, missing), value=math.nan)
    codes = codes_of_indices(bits, table.device)
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
    """A byte is an index. But three bytes of 3-bit or 6-bit codes are two indices of 12 bits: `[0x21, 0x43, 0x65] ->
    [0x321, 0x654]`. Five bytes of 5-bit codes are four indices of 10 bits."""
    if len(index) == len(packed):
        return index.copy_(packed)
    if 5 * len(index) == 4 * len(packed):
        words = [column.int() for column in packed.view(-1, 5).unbind(1)]
        for i, (low, high) in enumerate(zip(words, words[1:], strict=False)):  # index i begins at bit 2 i of byte i
            index[i::4] = low >> 2 * i | (high & (4 << 2 * i) - 1) << 8 - 2 * i
        return index
    first, middle, last = (column.int() for column in packed.view(-1, 3).unbind(1))
    index[0::2] = first | (middle & 0xF) << 8
    index[1::2] = middle >> 4 | last << 4
    return index
