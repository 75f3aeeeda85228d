"""NF4 and double quantization are those of bitsandbytes, bit for bit (golden files made by
tests/fixtures/make_golden.py)."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant.factors import DoubleQuantized, dynamic_map
from quant.grid import Block
from quant.normal_float import NormalFloat

GOLDEN = load_file(Path(__file__).parent.parent / "fixtures" / "bitsandbytes_nf4.safetensors")


@pytest.mark.parametrize("size", [64, 128, 256])
def test_codes_absmax_and_dequantized_values_equal_bitsandbytes(size):
    quantized = NormalFloat(4, Block(size, 1)).quantize(GOLDEN["weight"])
    assert torch.equal(quantized.grid.scale.flatten(), GOLDEN[f"absmax_{size}"])
    assert torch.equal(quantized.codes, GOLDEN[f"codes_{size}"])
    assert torch.equal(quantized.dequantize(), GOLDEN[f"dequantized_{size}"])
    assert len(quantized.codes.unique()) == 16


def test_double_quantization_of_the_same_factors_equals_bitsandbytes():
    """Map, mean, second-level absmax and 8-bit codes of 768 factors. (Of tens of thousands, a few in a thousand fall to
    the neighbouring code: its search rounds otherwise near a midpoint.)"""
    golden = load_file(Path(__file__).parent.parent / "fixtures" / "bitsandbytes_double.safetensors")
    ours = DoubleQuantized.of(golden["factor"])
    assert torch.equal(dynamic_map(), golden["map"])
    for name, tensor in (("mean", ours.mean), ("absmax", ours.absmax), ("codes", ours.codes)):
        assert torch.equal(tensor, golden[name]), name
    assert len(ours.codes.unique()) > 100
