"""PEQA: the scales train, codes and zero points never change, and the result is an integer-zero-point k-bit model."""
import pytest
import torch

from adapters import adapted_layer
from adapters.merge import merge_into_codes
from adapters.peqa import PEQA, RescaledMatmul
from model.llama import Linear
from quant import QUANTIZERS
from quant.factors import ZeroPoints
from quant.grid import Block, per_block, split_blocks
from quant.integer_minmax import IntegerMinMax
from quant.linear import QuantLinear
from tests.strategies import nonzero_adapter, random

BLOCK, D_OUT, D_IN = Block(8, 2), 6, 16


def layer_of(bits=4, trained=True, storage=torch.float64):
    weight = IntegerMinMax(bits, BLOCK, storage).quantize(random(D_OUT, D_IN))
    base = QuantLinear.from_weight(weight, random(D_OUT, seed=1))
    adapter = nonzero_adapter(PEQA, D_OUT, D_IN, block=BLOCK)
    if not trained:
        adapter.log_factor.data.zero_()
    return adapted_layer(base, adapter)


def test_a_fresh_adapter_is_the_base():
    layer, x = layer_of(trained=False), random(3, D_IN, seed=2)
    torch.testing.assert_close(layer(x), layer.base(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(D_IN,), (1, D_IN), (2, 3, D_IN)])
def test_output_and_both_gradients_are_those_of_the_plain_formula(shape):
    """(scale + d_scale) * (codes - z), written out with autograd's own products."""
    layer = layer_of()
    x, plain_x = (random(*shape, seed=2).requires_grad_() for _ in range(2))
    plain_factor = layer.adapter.log_factor.detach().clone().requires_grad_()
    grid = layer.base.quantized_weight()
    steps = grid.codes.double() - join(layer.base.offset.integers(layer.base.scale.shape).double())
    plain_y = plain_x @ (join(layer.base.scale * plain_factor.exp()) * steps).T + layer.base.bias
    y, grad = layer(x), random(*shape[:-1], D_OUT, seed=3)
    y.backward(grad), plain_y.backward(grad)
    torch.testing.assert_close(y, plain_y, rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, plain_x.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.adapter.log_factor.grad, plain_factor.grad, rtol=0, atol=1e-10)
    assert plain_factor.grad.abs().min() > 0


def join(factor):
    return factor.repeat_interleave(BLOCK.n_out, 0).repeat_interleave(BLOCK.n_in, 1)


def test_training_moves_scales_only_keeps_them_positive_and_merges_into_them():
    """The learning rate is far too large. Steps on the scale itself would cross zero (control); these do not."""
    layer, x, target = layer_of(trained=False), random(32, D_IN, seed=2), random(32, D_OUT, seed=3)
    before = {name: tensor.clone() for name, tensor in layer.base.state_dict().items()}
    optimizer = torch.optim.SGD(layer.adapter.parameters(), lr=0.3)
    plain = layer.base.scale.clone().requires_grad_()
    (RescaledMatmul.apply(x, plain, layer.base) + layer.base.bias - target).square().mean().backward()
    assert (plain - 20 * 0.3 * plain.grad).min() < 0
    for _ in range(20):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert layer.adapter.log_factor.abs().max() > 1
    scale = layer.adapter.scale(layer.base.scale)
    assert (scale > 0).all()
    for name, tensor in layer.base.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    merged = merge_into_codes(layer, "layer")
    assert merged.codes is layer.base.codes and merged.offset.zero is layer.base.offset.zero
    assert isinstance(merged.offset, ZeroPoints) and (merged.scale > 0).all()
    torch.testing.assert_close(merged(x), layer(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("value", [0, 1e-9])
def test_a_block_without_spread_has_a_positive_scale_as_well(value):
    """Also a block of weights that float16 cannot hold, beside others; a layer of them alone is refused."""
    weight = torch.cat((torch.full((2, 8), value), torch.ones(2, 8)))
    base = QuantLinear.from_weight(IntegerMinMax(4, BLOCK).quantize(weight))
    assert (base.scale > 0).all() and torch.equal(base.dequantize()[:2], torch.zeros(2, 8))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_merged_model_is_scale_times_code_minus_an_integer_of_the_grid(bits):
    merged = merge_into_codes(layer_of(bits), "layer").quantized_weight()
    scale, offset = merged.grid.factors()
    zero = merged.grid.offset.integers(scale.shape)
    assert int(zero.max()) < 2 ** bits
    torch.testing.assert_close(offset, -scale * zero, rtol=0, atol=0)
    codes = split_blocks(merged.codes.double() - join(zero.double()), BLOCK)
    values = split_blocks(merged.dequantize(torch.float64), BLOCK)
    torch.testing.assert_close(values, per_block(scale) * codes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("storage", [torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_weight_that_was_zero_is_exactly_zero_after_training_and_no_other_weight_changes(storage, dtype):
    """Codes that equal z. Computed as scale * code + offset, a fused multiply-add leaves up to 2e-7 (control)."""
    layer = layer_of(storage=storage)
    layer.adapter.float()
    merged = merge_into_codes(layer, "layer").quantized_weight()
    scale, offset = merged.grid.factors()
    zero = split_blocks(merged.codes, BLOCK) == per_block(merged.grid.offset.integers(scale.shape))
    wide = torch.promote_types(dtype, torch.float32)
    plain = torch.addcmul(per_block(offset.to(wide)), per_block(scale.to(wide)), split_blocks(merged.codes.to(wide),
                                                                                              BLOCK)).to(dtype)
    for weight in (merged.dequantize(dtype), layer.weight().to(dtype)):
        values = split_blocks(weight, BLOCK)
        assert zero.any() and not zero.all() and scale.dtype == torch.float32
        assert (values[zero] == 0).all() and (values[~zero] != 0).all()
        torch.testing.assert_close(values[~zero], plain[~zero], rtol=1e-6 if dtype == torch.float64 else 0, atol=0)
    assert plain[zero].abs().max() < 1e-6
    x = torch.eye(D_IN)
    assert (split_blocks((layer(x) - layer.base.bias.float()).T, BLOCK)[zero] == 0).all()


def test_it_keeps_no_weight_for_backward():
    layer, kept = layer_of(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(random(3, D_IN).requires_grad_())
    assert (D_OUT, D_IN) not in kept and (3, D_IN) in kept


@pytest.mark.parametrize("name", [None, *(name for name in QUANTIZERS if name != "intminmax")])
def test_a_base_without_integer_zero_points_is_refused(name):
    base = Linear(D_IN, D_OUT)
    if name:
        base = QuantLinear.from_weight(QUANTIZERS[name](4, BLOCK).quantize(random(D_OUT, D_IN)))
    with pytest.raises(ValueError, match="--quantizer intminmax"):
        adapted_layer(base, PEQA(D_OUT, D_IN, BLOCK))
