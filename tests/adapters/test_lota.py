"""LoTA-QAF: the layer is its formula, its gradient is the straight-through one, and its merge is what was trained, to
the last bit."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import adapted_layer, lota
from adapters.held import held_layers
from adapters.lota import LoTA
from adapters.merge import merge_into_codes, merge_target, merge_to_dense
from adapters.restoration import RestorationRefused, check_restores
from finetune.resolve import EVEN
from finetune.sign_sgd import SignSGD
from model.llama import Linear
from quant import QUANTIZERS
from quant.grid import Block, dequantize, join_blocks, per_block, split_blocks
from quant.linear import QuantLinear
from tests.strategies import random

D_OUT, D_IN, RANK = 32, 48, 4
GRIDS = [(name, bits) for name in EVEN for bits in QUANTIZERS[name].allowed_bits]
BLOCKS = [Block(4, 8), Block(8, 2), Block(16, 1), Block(None, 1)]


def base_of(grid, block=BLOCKS[0], dtype=torch.float64):
    weight = QUANTIZERS[grid[0]](grid[1], block, dtype).quantize(random(D_OUT, D_IN, seed=5, dtype=dtype))
    return QuantLinear.from_weight(weight, random(D_OUT, seed=6, dtype=dtype))


def ternary(*shape, seed):
    values = random(*shape, seed=seed)
    return values.sign() * (values.abs() > 0.4)


def layer_of(grid=("minmax", 4), block=BLOCKS[0], omega=1.5, dtype=torch.float64, seed=0):
    adapter = LoTA(D_OUT, D_IN, RANK, omega).to(dtype)
    adapter.A.data, adapter.B.data = ternary(RANK, D_IN, seed=seed).to(dtype), ternary(D_OUT, RANK, seed=7).to(dtype)
    return adapted_layer(base_of(grid, block, dtype), adapter)


def plainly(layer, x):
    """The formula with autograd: t = P / omega in the gradient, but where it is 0 because the grid ends."""
    base, omega, block = layer.base, layer.adapter.omega, layer.base.block
    P, codes = layer.adapter.B @ layer.adapter.A, base.quantized_weight().codes.double()
    wanted = torch.where(P.abs() > omega, P.sign(), 0.0).detach()
    inside = ((codes + wanted >= 0) & (codes + wanted <= len(base.levels) - 1)).double()
    smooth = P / omega * inside
    t = smooth + (wanted * inside - smooth).detach()
    mu = split_blocks((P - omega * t) / omega, block).mean((1, 3))
    scale, offset = (factor.double() for factor in base.grid.factors())
    levels = base.levels.double()[codes.long()] + t
    W = join_blocks(per_block(scale) * split_blocks(levels, block) + per_block(offset + scale * mu))
    return x @ W.T + base.bias


def gradients(y, layer, x):
    return [y, *torch.autograd.grad(y, [x, *layer.adapter.parameters()], random(*y.shape, seed=9))]


def same(a, b):
    return all(torch.allclose(s, t, rtol=1e-9, atol=1e-9) for s, t in zip(a, b, strict=True))


@settings(max_examples=60)
@given(st.sampled_from(GRIDS), st.sampled_from(BLOCKS), st.sampled_from([0.5, 1.5, 2.5, 3.9]), st.integers(0, 99))
def test_values_and_gradients_are_those_of_the_formula(grid, block, omega, seed):
    layer, x = layer_of(grid, block, omega, seed=seed), random(2, 5, D_IN, seed=8).requires_grad_()
    found = gradients(layer(x), layer, x)
    assert same(found, gradients(plainly(layer, x), layer, x))
    assert same([merge_to_dense(layer, torch.float64)(x)], found[:1])


@pytest.mark.parametrize("name,spoilt", [
    ("stepped", lambda f: lambda *a: (f(*a)[0], f(*a)[1], torch.zeros_like(f(*a)[2]))),         # no clipped gradient
    ("per_block", lambda f: lambda factor: torch.ones_like(f(factor))),                         # without the scale
    ("moved", lambda f: lambda base, P, omega: f(base, P, 2 * omega)),                          # another threshold
    ("moved", lambda f: lambda base, P, omega: f(base, -P, omega))])
def test_another_formula_would_be_noticed(monkeypatch, name, spoilt):
    layer, x = layer_of(("minmax", 2)), random(2, D_IN, seed=8).requires_grad_()
    expected = gradients(plainly(layer, x), layer, x)
    monkeypatch.setattr(lota, name, spoilt(getattr(lota, name)))
    assert not same(gradients(layer(x), layer, x), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_as_trained_and_merged_are_the_same_bits(grid):
    layer = layer_of(grid, dtype=torch.float32)
    before = layer.base.quantized_weight().codes.int()
    assert merge_target(layer.base, layer.adapter).into == "codes and offset"
    merged = merge_into_codes(layer)
    for dtype in (torch.float32, torch.bfloat16):
        x = random(3, 7, D_IN, seed=8, dtype=torch.float32).to(dtype)
        assert torch.equal(layer(x), merged(x)) and torch.equal(layer.eval()(x), merged(x))
        assert not torch.equal(layer(x), layer.base(x))
    assert torch.equal(layer.weight(), merged.dequantize())
    moves = merged.quantized_weight().codes.int() - before
    assert set(moves.unique().tolist()) == {-1, 0, 1} and len(merged.codes) == len(layer.base.codes)
    assert torch.equal(merged.scale, layer.base.scale) and torch.equal(merged.levels, layer.base.levels)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_code_leaves_the_grid(grid):
    layer = layer_of(grid, omega=0.5, dtype=torch.float32)
    codes = merge_into_codes(layer).quantized_weight().codes
    assert int(codes.max()) <= len(layer.base.levels) - 1
    ends = layer.base.quantized_weight().codes
    P = layer.adapter.product()
    for end, sign in ((0, -1), (len(layer.base.levels) - 1, 1)):
        held = (ends == end) & (P.sign() == sign)
        assert held.any() and (codes[held] == end).all()


@settings(max_examples=30)
@given(st.sampled_from(GRIDS), st.sampled_from(BLOCKS), st.integers(0, 99))
def test_the_mean_of_a_block_moves_by_that_of_the_product(grid, block, seed):
    """t + mu is P / omega on average, so that what the threshold cuts off is not lost."""
    layer = layer_of(grid, block, seed=seed)
    scale, _ = layer.base.grid.factors()
    change = split_blocks(layer.weight() - dequantize(layer.base.quantized_weight().codes, layer.base.grid,
                                                      torch.float64), layer.base.block).mean((1, 3))
    of_P = split_blocks(layer.adapter.product() / layer.adapter.omega, layer.base.block).mean((1, 3))
    torch.testing.assert_close(change, scale.double() * of_P, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_new_adapter_computes_what_the_base_does(grid):
    torch.manual_seed(0)
    weight = QUANTIZERS[grid[0]](grid[1], BLOCKS[0]).quantize(random(D_OUT, D_IN, seed=5).float())
    layer, x = adapted_layer(QuantLinear.from_weight(weight), LoTA(D_OUT, D_IN, 16)), random(3, D_IN, seed=8).float()
    assert layer.adapter.omega == 16 / 2 ** grid[1] and set(layer.adapter.A.unique().tolist()) == {-1, 0, 1}
    assert 0.4 < layer.adapter.A.abs().mean() < 0.7  # 55 % of normal numbers are above 0.75 of their mean size
    assert torch.equal(layer(x), layer.base(x)) and torch.equal(merge_into_codes(layer).codes, layer.base.codes)


def test_held_weights_are_the_moved_ones():
    layer = layer_of(dtype=torch.float32)
    (name, held), = held_layers(torch.nn.ModuleDict({"a": layer}))
    assert name == "a" and torch.equal(held.dequantize(), layer.weight())


def test_backward_keeps_no_weight():
    layer, x, kept = layer_of(), random(3, D_IN, seed=8).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    assert sorted(kept) == [(3, D_IN), (RANK, D_IN), (D_OUT, RANK)]


@pytest.mark.parametrize("grid", [(name, kind.allowed_bits[0]) for name, kind in QUANTIZERS.items()], ids=str)
def test_levels_that_are_not_even_are_refused(grid):
    if grid[0] in EVEN:
        assert adapted_layer(base_of(grid), LoTA(D_OUT, D_IN, RANK))
        return
    with pytest.raises(ValueError, match="the levels of this base are not consecutive whole numbers: use --quantizer"):
        adapted_layer(base_of(grid), LoTA(D_OUT, D_IN, RANK))


@pytest.mark.parametrize("bits,rank,omega", [(4, 16, 1), (2, 16, 4), (3, 64, 4), (2, 1, 0.75), (8, 16, 1 / 16)])
def test_the_usual_omega_changes_weights_as_much_at_any_rank_and_width(bits, rank, omega):
    """Unless it would be no less than the rank. A given one stays."""
    assert adapted_layer(base_of(("minmax", bits)), LoTA(D_OUT, D_IN, rank)).adapter.omega == omega
    assert adapted_layer(base_of(("minmax", bits)), LoTA(D_OUT, D_IN, rank, 0.5)).adapter.omega == 0.5


def test_what_moves_no_code_is_refused():
    for omega in (4.0, 7.0):
        with pytest.raises(ValueError, match=f"omega={omega:g} moves no code.*at most the rank, 4; give --omega"):
            LoTA(D_OUT, D_IN, RANK, omega)
    with pytest.raises(ValueError, match="its base is not quantized, and lota moves codes"):
        adapted_layer(Linear(D_IN, D_OUT, bias=False), LoTA(D_OUT, D_IN, RANK))
    with pytest.raises(RestorationRefused, match="lota does not transfer to another base: it moved the k-bit codes"):
        check_restores(LoTA)


def test_no_step_waits_for_a_device():
    """On tensors without values, whatever asks for one fails: a GPU would have to be waited for."""
    layer = layer_of(("minmax", 4), BLOCKS[2], dtype=torch.float32).to("meta")
    x = torch.empty(2, 3, D_IN, device="meta", dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    SignSGD(layer.adapter.parameters()).step()
    with pytest.raises((RuntimeError, NotImplementedError)):  # control
        x.sum().item()
