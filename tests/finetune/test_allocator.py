"""Large blocks that are kept between steps. How many pages the system then fills again depends on its load, so that the
requests to the C library are tested, and not their effect."""
import ctypes

import pytest

from finetune.allocator import KEEP, USUAL, kept_blocks


class Glibc:
    def __init__(self):
        self.asked: list = []

    def mallopt(self, option: int, value: int) -> None:
        self.asked.append((option, value))

    def malloc_trim(self, left: int) -> None:
        self.asked.append("trim")


def test_the_c_library_keeps_blocks_inside_and_gives_them_back_behind_even_after_an_error(monkeypatch):
    library = Glibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    with pytest.raises(KeyError), kept_blocks() as keeps:
        assert keeps and library.asked == list(KEEP.items())
        raise KeyError
    assert library.asked[len(KEEP):] == [*USUAL.items(), "trim"] and KEEP.keys() == USUAL.keys()


def test_another_c_library_changes_nothing(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with kept_blocks() as keeps:
        assert not keeps
