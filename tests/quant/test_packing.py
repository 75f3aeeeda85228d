import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.packing import SUPPORTED_BITS, pack, unpack
from tests.strategies import bits, seeds


@given(bits, st.integers(0, 70), seeds)
def test_unpacking_what_was_packed_gives_the_codes_back(bits, n, seed):
    codes = torch.randint(0, 2 ** bits, (n,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, (n,)), codes)


@pytest.mark.parametrize("bits", SUPPORTED_BITS)
def test_packed_size_is_exactly_bits_per_code(bits):
    assert pack(torch.zeros(16, 24, dtype=torch.uint8), bits).numel() == 16 * 24 * bits // 8


@pytest.mark.parametrize("bits,n_bytes,codes", [
    (3, 3, [1, 2, 3, 4, 5, 6, 7, 0]), (5, 5, [1, 31, 2, 16, 30, 7, 21, 29]), (6, 3, [1, 63, 32, 50])])
def test_a_word_holds_its_codes_lowest_bits_first(bits, n_bytes, codes):
    word = sum(code << (bits * i) for i, code in enumerate(codes))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert packed.tolist() == list(word.to_bytes(n_bytes, "little"))
    assert unpack(packed, bits, (len(codes),)).tolist() == codes


def test_two_four_bit_codes_share_a_byte_the_first_in_its_low_half():
    assert pack(torch.tensor([0x3, 0xA], dtype=torch.uint8), 4).tolist() == [0xA3]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_a_code_too_large_for_its_bits_is_refused(bits):
    with pytest.raises(ValueError, match=f"does not fit in {bits} bits"):
        pack(torch.tensor([2 ** bits], dtype=torch.uint8), bits)


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits=7 is not one of 2, 3, 4, 5, 6, 8"):
        pack(torch.zeros(8, dtype=torch.uint8), 7)
