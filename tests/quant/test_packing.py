import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.packing import pack, unpack
from tests.strategies import bits, seeds


@given(bits, st.integers(0, 70), seeds)
def test_unpacking_what_was_packed_gives_the_codes_back(bits, n, seed):
    codes = torch.randint(0, 2 ** bits, (n,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, (n,)), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_size_is_exactly_bits_per_code(bits):
    assert pack(torch.zeros(16, 24, dtype=torch.uint8), bits).numel() == 16 * 24 * bits // 8


def test_eight_three_bit_codes_take_three_bytes_lowest_bits_first():
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8)
    word = sum(code << (3 * i) for i, code in enumerate(codes.tolist()))
    assert pack(codes, 3).tolist() == list(word.to_bytes(3, "little"))


def test_two_four_bit_codes_share_a_byte_the_first_in_its_low_half():
    assert pack(torch.tensor([0x3, 0xA], dtype=torch.uint8), 4).tolist() == [0xA3]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_code_too_large_for_its_bits_is_refused(bits):
    with pytest.raises(ValueError, match=f"does not fit in {bits} bits"):
        pack(torch.tensor([2 ** bits], dtype=torch.uint8), bits)


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits=5 is not one of 2, 3, 4, 8"):
        pack(torch.zeros(8, dtype=torch.uint8), 5)
