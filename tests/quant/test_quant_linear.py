"""The quantized layer is the plain layer on the dequantized weight, and keeps nothing but codes for backward."""
import pytest
import torch
import torch.nn.functional as F

from quant import QUANTIZERS
from quant.grid import Block
from quant.linear import QuantLinear, stored_bytes
from quant.minmax import MinMax
from tests.strategies import random

EVERY = [(kind, bits) for kind in QUANTIZERS.values() for bits in kind.allowed_bits]


def layer_of(kind, bits, dtype=torch.float64, bias=True):
    weight = kind(bits, Block(8, 4), storage=dtype).quantize(random(12, 16, dtype=dtype))
    return QuantLinear.from_weight(weight, random(12, seed=1, dtype=dtype) if bias else None)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (3, 5, 16)])
@pytest.mark.parametrize("kind,bits", EVERY)
def test_quantized_layer_equals_plain_layer_on_the_dequantized_weight(kind, bits, shape):
    layer = layer_of(kind, bits)
    x, plain_x = (random(*shape, seed=2).requires_grad_() for _ in range(2))
    y, plain_y = layer(x), F.linear(plain_x, layer.dequantize(torch.float64), layer.bias)
    torch.testing.assert_close(y, plain_y, rtol=0, atol=1e-10)
    grad = random(*y.shape, seed=3)
    y.backward(grad), plain_y.backward(grad)
    torch.testing.assert_close(x.grad, plain_x.grad, rtol=0, atol=1e-10)
    assert x.grad.abs().max() > 0


def test_a_transposed_block_would_be_noticed():
    weight = random(16, 16)
    right = MinMax(2, Block(8, 4), storage=torch.float64).quantize(weight).dequantize(torch.float64)
    wrong = MinMax(2, Block(4, 8), storage=torch.float64).quantize(weight).dequantize(torch.float64)
    assert (right - wrong).abs().max() > 1e-2


def elements_kept_for_backward(forward):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        forward()
    return sum(kept)


def test_backward_keeps_no_dequantized_weight():
    layer, x = layer_of(MinMax, 4, bias=False), random(3, 16).requires_grad_()
    assert elements_kept_for_backward(lambda: layer(x)) == 0
    assert elements_kept_for_backward(lambda: F.linear(x, layer.dequantize(torch.float64))) >= 12 * 16  # control


@pytest.mark.parametrize("kind,bits,block,expected", [
    ("minmax", 4, Block(4, 8), 4 + 32 / 32), ("minmax", 3, Block(4, 8), 3 + 32 / 32),
    ("minmax", 2, Block(32, 1), 2 + 32 / 32), ("minmax", 4, Block(8, 8), 4 + 32 / 64),
    ("absmax", 8, Block(64, 1), 8 + 16 / 64), ("nf", 4, Block(64, 1), 4 + 32 / 64),
    ("intminmax", 4, Block(32, 1), 4 + (16 + 4) / 32), ("icq", 4, Block(64, 1), 4 + 64 / 64)])
def test_stored_bits_a_weight_are_codes_and_factors_and_hardly_more(kind, bits, block, expected):
    layer = QuantLinear.from_weight(QUANTIZERS[kind](bits, block).quantize(random(256, 512, dtype=torch.float32)))
    stored = 8 * stored_bytes([layer]) / (256 * 512)
    levels_and_zero = 8 * (4 * len(layer.levels) + 4) / (256 * 512)
    assert expected <= stored <= expected + levels_and_zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_forward_errs_at_most_twice_as_much_as_the_plain_layer(dtype):
    layer = layer_of(MinMax, 4, torch.float32)
    x = random(7, 16, seed=4, dtype=torch.float32)
    exact = F.linear(x.double(), layer.dequantize(torch.float64), layer.bias.double())
    plain = F.linear(x.to(dtype), layer.dequantize(dtype), layer.bias.to(dtype))
    assert (layer(x.to(dtype)).double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + 1e-6


def test_bytes_that_two_layers_share_count_once():
    layer = layer_of(MinMax, 4)
    merged = layer.with_offset(layer.offset.float())
    assert stored_bytes([layer, merged]) == stored_bytes([layer]) + 4 * layer.offset.numel()
