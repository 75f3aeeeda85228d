"""N-bit codes <-> bytes. The first code takes the lowest bits, and no bit is wasted.

A byte holds four 2-bit codes or two 4-bit codes. Three bytes hold eight 3-bit codes.
"""
import math

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
    if n_bytes == 1:
        words = packed[:, None]
    else:
        shifts = 8 * torch.arange(n_bytes, dtype=torch.int32, device=packed.device)
        words = (packed.unflatten(0, (-1, n_bytes)).int() << shifts).sum(1, dtype=torch.int32)[:, None]
    shifts = bits * torch.arange(n_codes, dtype=words.dtype, device=packed.device)
    codes = ((words >> shifts) & (2 ** bits - 1)).to(torch.uint8)
    return codes.flatten()[:math.prod(shape)].view(shape)
