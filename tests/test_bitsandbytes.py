"""NF4 is bitsandbytes' NF4, bit for bit (golden file made by tests/fixtures/make_golden.py)."""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant.grid import Block
from quant.normal_float import NormalFloat

GOLDEN = load_file(Path(__file__).parent / "fixtures" / "bitsandbytes_nf4.safetensors")


@pytest.mark.parametrize("size", [64, 128, 256])
def test_codes_absmax_and_dequantized_values_equal_bitsandbytes(size):
    quantized = NormalFloat(4, Block(size, 1)).quantize(GOLDEN["weight"])
    assert torch.equal(quantized.grid.scale.flatten(), GOLDEN[f"absmax_{size}"])
    assert torch.equal(quantized.codes, GOLDEN[f"codes_{size}"])
    assert torch.equal(quantized.dequantize(), GOLDEN[f"dequantized_{size}"])
    assert len(quantized.codes.unique()) == 16
