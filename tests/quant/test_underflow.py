"""Scales that become 0 in their storage type: refused if a block is lost, as scales that overflow are."""
import pytest
import torch

from quant.absmax import AbsMax
from quant.gguf_blocks import BLOCK_TYPES, in_file_blocks
from quant.grid import Block, Grid, QuantizedWeight
from quant.integer_minmax import IntegerMinMax
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from tests.strategies import random

BLOCK = Block(4, 1)
HALF = (MinMax, AbsMax, IntegerMinMax)


def small(size: float, dtype=torch.float32):
    return random(8, 16).to(dtype) * size


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("size", [1e-8, 1e-12, 1e-30])
def test_a_layer_that_float16_scales_turn_into_zeros_is_refused(kind, size):
    with pytest.raises(ValueError, match="layer up_proj: .*underflows to 0 in torch.float16.*store scales in float32"):
        kind(4, BLOCK).fit(small(size), "up_proj")


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("size", [1e-4, 1e-5])
def test_a_layer_that_float16_still_holds_is_not(kind, size):
    weight = small(size)
    assert (kind(4, BLOCK).quantize(weight).dequantize() - weight).abs().max() < 0.2 * weight.abs().max()


@pytest.mark.parametrize("kind", HALF)
def test_blocks_that_lose_nothing_are_kept(kind):
    """Zeros, a block far smaller than the rest of its layer, and one that is nearly constant."""
    weight = small(0.02)
    weight[0], weight[1], weight[2] = 0, small(1e-9)[1], 0.01 + small(1e-9)[2]
    again = kind(4, BLOCK).quantize(weight).dequantize()
    assert (again[0] == 0).all() and again[1].abs().max() < 1e-6
    assert (again[2] - weight[2]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", HALF)
def test_a_small_block_that_matters_in_its_layer_is_refused(kind):
    weight = torch.zeros(8, 16)
    weight[3] = small(1e-9)[3]
    with pytest.raises(ValueError, match="underflows to 0"):
        kind(4, BLOCK).fit(weight)


def test_float32_scales_hold_such_weights():
    weight = small(1e-12)
    for quantizer in (NormalFloat(4, BLOCK), MinMax(4, BLOCK, torch.float32)):
        assert (quantizer.quantize(weight).dequantize() - weight).abs().max() < 0.2 * weight.abs().max()


@pytest.mark.parametrize("scale,refused", [(1e-9, True), (1e-3, False), (0.0, False)])
def test_a_scale_that_a_gguf_file_would_store_as_0_is_refused(scale, refused):
    grid = Grid(torch.arange(16.0), torch.full((2, 1), scale), torch.zeros(2, 1), Block(32, 1), 4)
    weight = QuantizedWeight(torch.ones(2, 32, dtype=torch.uint8), grid)
    if refused:
        with pytest.raises(ValueError, match="underflows to 0 in torch.float16"):
            in_file_blocks(weight, BLOCK_TYPES["Q4_1"])
    else:
        assert in_file_blocks(weight, BLOCK_TYPES["Q4_1"]).grid.factors()[0][0, 0] == torch.tensor(scale).half()


# ---- constant blocks ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_constant_block_of_16_bit_weights_comes_back_exactly(dtype, bits):
    weight = random(64, 1).to(dtype).float().expand(64, 16).contiguous()
    assert torch.equal(MinMax(bits, BLOCK).quantize(weight).dequantize(), weight)


def test_a_constant_block_of_float32_weights_comes_back_as_its_storage_type_holds_it():
    weight = random(64, 1).float().expand(64, 16).contiguous()
    half, wide = (MinMax(4, BLOCK, storage).quantize(weight).dequantize() for storage in (None, torch.float32))
    assert torch.equal(wide, weight) and torch.equal(half, weight.half().float())
    assert (half - weight).abs().max() <= 2 ** -11 * weight.abs().max()
