"""Large blocks that are kept between steps."""
import resource

import pytest
import torch

from finetune.allocator import kept_blocks

PAGES = 8 * 2 ** 20 // resource.getpagesize()


def faults_of(rounds: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.zeros(2 * 2 ** 20)  # 8 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_freed_block_is_used_again_inside_and_given_back_behind():
    with kept_blocks() as keeps:
        if not keeps:
            pytest.skip("the C library is not glibc")
        faults_of(1)
        assert faults_of(10) < 3 * PAGES  # a block may be laid out once more
    assert faults_of(10) > 5 * PAGES
