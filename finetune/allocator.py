"""Large blocks that are kept while training frees and asks for them step after step.

The C library gives a large block back to the system when it is freed, and each page of the next one costs a fault and
is filled with zeros again. Measured with SmolLM2-135M on one thread: 5 % of a step of 8 x 128 tokens.
"""
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of mallopt(3)
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2 ** 31 - 1}
USUAL = {MMAP_MAX: 65536, TRIM_THRESHOLD: 128 * 1024}


def give_blocks_back() -> None:
    """From now on each block of 128 KiB or more goes back to the system when it is freed. The C library would raise
    that limit to the largest block that was freed. For processes that share a base, and gather and free each layer:
    blocks that were kept took more than sharing saves (docs/scale.md)."""
    try:
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 128 * 1024)
    except (OSError, AttributeError, TypeError):
        pass


@contextmanager
def kept_blocks() -> Iterator[bool]:
    """Inside, freed memory stays with the process; at the end it goes back. Yields False, and does nothing, where the C
    library is not glibc."""
    try:
        library = ctypes.CDLL(None)
        set_option, give_back = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        yield False
        return
    for option, value in KEEP.items():
        set_option(option, value)
    try:
        yield True
    finally:
        for option, value in USUAL.items():
            set_option(option, value)
        give_back(0)
