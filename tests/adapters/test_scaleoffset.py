"""Scale and offset together: on every grid step 0 is the base, the two factors train, codes and levels never change,
and what trains is what is merged, to the last bit."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import adapted_layer, scaleoffset
from adapters.held import held_layers
from adapters.merge import merge_into_codes
from adapters.peqa import PEQA
from adapters.scaleoffset import ScaleOffset
from model.llama import Linear
from quant import QUANTIZERS
from quant.gptq import gptq
from quant.grid import Block
from quant.linear import QuantLinear
from tests.strategies import blocks, nonzero_adapter, random, weights

D_OUT, D_IN, BLOCK = 32, 64, Block(8, 4)
GRIDS = [(name, bits, double) for name, kind in QUANTIZERS.items() for bits in kind.allowed_bits
         for double in ((False, True) if name in ("nf", "icq") else (False,))]
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def layer_of(grid="minmax", bits=4, double=False, block=BLOCK, trained=True, storage=torch.float16):
    weight = QUANTIZERS[grid](bits, block, storage, double).quantize(random(D_OUT, D_IN, dtype=torch.float32))
    base = QuantLinear.from_weight(weight, random(D_OUT, seed=1, dtype=torch.float32))
    adapter = nonzero_adapter(ScaleOffset, D_OUT, D_IN, block=base.block).float()
    if not trained:
        adapter = ScaleOffset(D_OUT, D_IN, base.block)
    return adapted_layer(base, adapter)


def x_of(dtype, *shape):
    return random(*shape or (3, 7), D_IN, seed=8, dtype=torch.float32).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("grid,bits,double", GRIDS)
def test_step_0_is_the_base_and_as_trained_is_merged_bit_for_bit(grid, bits, double, dtype):
    for block in (Block(8, 4), Block(32, 1), Block(None, 1)):
        fresh, layer = (layer_of(grid, bits, double, block, trained) for trained in (False, True))
        x = x_of(dtype)
        assert torch.equal(fresh(x), fresh.base(x))
        merged = merge_into_codes(layer)
        assert merged.codes is layer.base.codes and merged.levels is layer.base.levels
        assert torch.equal(layer(x), merged(x)) and not torch.equal(layer(x), layer.base(x))
        with torch.no_grad():
            assert torch.equal(layer(x), merged(x))
        assert torch.equal(layer.weight(), merged.dequantize())


@pytest.mark.parametrize("grid", QUANTIZERS)
def test_the_sum_of_two_products_is_not_the_merged_layer_bit_for_bit(grid):
    """Control: base and change rounded apart. Otherwise the test above would show nothing."""
    layer, x = layer_of(grid), x_of(torch.bfloat16)
    changed = (layer.weight() - layer.base.dequantize()).bfloat16()
    assert not torch.equal(layer.base(x) + x @ changed.T, merge_into_codes(layer)(x))


@given(st.data(), st.sampled_from(list(QUANTIZERS)), blocks, st.booleans())
def test_both_merges_are_the_plain_formula(data, grid, block, by_gptq):
    """f * W_hat + H / 8 in float64, blocks of one value and of zeros included. Controls: one of the two left out, and
    the offset not multiplied."""
    weight = data.draw(weights(block))
    quantizer = QUANTIZERS[grid](data.draw(st.sampled_from(QUANTIZERS[grid].allowed_bits)), block, torch.float64)
    try:
        eye = torch.eye(weight.shape[1], dtype=torch.float64)
        quantized = gptq(weight, eye, quantizer)[0] if by_gptq else quantizer.quantize(weight)
    except ValueError:
        return  # a layer that the quantizer refuses
    base = QuantLinear.from_weight(quantized)
    adapter = nonzero_adapter(ScaleOffset, *weight.shape, block=base.block, seed=data.draw(st.integers(0, 99)))
    f, added = (spread(t, block) for t in (adapter.log_factor.detach().exp(), 0.125 * adapter.H.detach()))
    W_hat, size = base.dequantize(torch.float64), float(weight.abs().max()) + 1
    merged = merge_into_codes(adapted_layer(base, adapter)).dequantize(torch.float64)

    def is_near(expected):
        return bool((merged - expected).abs().max() <= 1e-9 * size)
    assert is_near(f * W_hat + added)
    assert not is_near(f * W_hat)
    if (W_hat * (f - 1)).abs().max() > 1e-6 * size:
        assert not is_near(W_hat + added)
    _, offset = base.grid.factors()
    if (offset * (adapter.log_factor.detach().exp() - 1)).abs().max() > 1e-6 * size:
        assert not is_near(f * (W_hat - spread(offset.expand_as(adapter.H), block)) + spread(
            offset.expand_as(adapter.H), block) + added)


def spread(factor, block):
    return factor.repeat_interleave(block.n_out, 0).repeat_interleave(block.n_in, 1)


@pytest.mark.parametrize("grid", QUANTIZERS)
@pytest.mark.parametrize("wrong", [None, "unit", "factor"])
def test_values_and_gradients_are_those_of_autograd(grid, wrong, monkeypatch):
    block = Block(8, 4)
    layer = layer_of(grid, block=block, storage=torch.float64).double()
    x, plain_x = (x_of(torch.float64).requires_grad_() for _ in range(2))
    log_factor, H = (p.detach().clone().requires_grad_() for p in (layer.adapter.log_factor, layer.adapter.H))
    weight = spread(log_factor.exp(), block) * layer.base.dequantize(torch.float64) + spread(H, block) / 8
    expected_y, grad_y = plain_x @ weight.T + layer.base.bias, random(3, 7, D_OUT, seed=9)
    expected = torch.autograd.grad(expected_y, [plain_x, log_factor, H], grad_y)
    if wrong == "unit":
        monkeypatch.setattr(scaleoffset, "UNIT", 0.5)
    if wrong == "factor":
        layer.adapter.log_factor.data.add_(0.1)
    y = layer(x)
    found = torch.autograd.grad(y, [x, layer.adapter.log_factor, layer.adapter.H], grad_y)
    close = [torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip((y, *found), (expected_y, *expected), strict=True)]
    assert all(close) == (wrong is None)
    assert min(t.abs().min() for t in expected[1:]) > 0


def test_without_H_it_is_peqa_on_integer_zero_points():
    layer = layer_of("intminmax", storage=torch.float64).double()
    layer.adapter.H.data.zero_()
    peqa = PEQA(D_OUT, D_IN, layer.base.block).double()
    peqa.log_factor.data.copy_(layer.adapter.log_factor)
    x = x_of(torch.float64)
    torch.testing.assert_close(layer(x), adapted_layer(layer.base, peqa)(x), rtol=0, atol=1e-10)
    layer.adapter.H.data.add_(0.01)
    assert (layer(x) - adapted_layer(layer.base, peqa)(x)).abs().max() > 1e-3


def test_training_changes_neither_codes_nor_the_base():
    layer, x, target = layer_of(trained=False), x_of(torch.float32, 16), random(16, D_OUT, seed=3, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in layer.base.state_dict().items()}
    optimizer, losses = torch.optim.AdamW(layer.adapter.parameters(), lr=2e-2), []
    for _ in range(30):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, tensor in layer.base.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    scale, _ = merge_into_codes(layer).grid.factors()
    assert (scale > 0).all() and all(p.abs().max() > 0.05 for p in layer.adapter.parameters())


def test_it_keeps_no_weight_for_backward():
    layer, kept = layer_of(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x_of(torch.float32).requires_grad_())
    assert (D_OUT, D_IN) not in kept and (3, 7, D_IN) in kept


def test_a_held_model_holds_the_merged_weight():
    layer = layer_of()
    (name, held), = held_layers(torch.nn.ModuleDict({"layer": layer}))
    assert name == "layer" and torch.equal(held.dequantize(), merge_into_codes(layer).dequantize())


def test_a_base_without_codes_is_refused():
    with pytest.raises(ValueError, match="not quantized, and scaleoffset trains .* use --quantizer minmax"):
        ScaleOffset(D_OUT, D_IN, None)
    with pytest.raises(ValueError, match="not quantized, and scaleoffset trains"):
        adapted_layer(Linear(D_IN, D_OUT), ScaleOffset(D_OUT, D_IN, Block(8, 4)))
