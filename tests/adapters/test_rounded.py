"""Training through the rounding: the layer is its formula, its gradient is the straight-through one, and its merge is
what was trained, to the last bit."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import ADAPTERS, adapted_layer, rounded
from adapters.held import held_layers
from adapters.lam import Lam
from adapters.merge import codes_moved, merge_into_codes, merge_target, merge_to_dense
from adapters.operators import OPERATORS
from adapters.peqa import PEQA
from adapters.restoration import RestorationRefused, check_restores
from adapters.rounded import RoundedLinear, into_codes
from model.llama import Linear
from quant import QUANTIZERS
from quant.gptq import gptq
from quant.grid import Block, dequantize, join_blocks, per_block, round_to_grid, split_blocks
from quant.linear import QuantLinear
from quant.moved import ends, residual_of
from tests.strategies import nonzero_adapter, possible_lams, random

D_OUT, D_IN = 32, 48
KINDS = [(kind, operators) for kind in ADAPTERS.values() if kind.additive
         for operators in (OPERATORS if "operators" in kind.options else ["avgpool"])]
GRIDS = [(name, bits) for name, kind in QUANTIZERS.items() for bits in kind.allowed_bits]
BLOCKS = [Block(4, 8), Block(8, 2), Block(16, 1), Block(None, 1)]
LAMS = [Lam(1, 1), Lam(2, 2), Lam(8, 1), Lam(4, 8)]
IDS = dict(ids=lambda value: getattr(value, "name", str(value)))


def layer_of(kind, operators="avgpool", lam=None, grid=("minmax", 4), block=BLOCKS[0], size=0.1,
             dtype=torch.float64, keep=False) -> RoundedLinear:
    """size: of delta_W beside weights of deviation 1. keep: the residual of the original weights."""
    original = random(D_OUT, D_IN, seed=5, dtype=dtype)
    weight = QUANTIZERS[grid[0]](grid[1], block, dtype).quantize(original)
    lam = lam or possible_lams(kind, LAMS, (D_OUT, D_IN))[0]
    adapter = nonzero_adapter(kind, D_OUT, D_IN, lam, operators=operators)
    adapter.scaling *= size / adapter.delta_weight().std().item()
    layer = adapted_layer(QuantLinear.from_weight(weight, random(D_OUT, seed=6, dtype=dtype)),
                          into_codes(adapter.to(dtype)))
    layer.residual = residual_of(original, weight) if keep else None
    return layer


def plainly(layer, x, clips=True):
    """The formula with autograd: W = round(W_hat + delta_W), its gradient that of delta_W where nothing is clipped."""
    base, delta = layer.base, layer.adapter.delta_weight()
    grid, levels = base.grid, base.levels.double()
    codes = base.quantized_weight().codes.int()
    residual = where_it_begins(codes, levels) if layer.residual is None else layer.residual.double()
    W_ref = dequantize(codes, grid, torch.float64) + delta + join_blocks(
        split_blocks(residual, grid.block) * per_block(grid.factors()[0]))
    W = dequantize(round_to_grid(W_ref.detach(), grid), grid, torch.float64)
    scale, offset = (per_block(factor.double()) for factor in grid.factors())
    position = ((split_blocks(W_ref.detach(), grid.block) - offset) / scale).flatten(2, 3).flatten(0, 1)
    longer = torch.cat((2 * levels[:1] - levels[1:2], levels, 2 * levels[-1:] - levels[-2:-1]))
    nearest = (position[..., None] - longer).abs().argmin(-1)
    inside = ((nearest > 0) & (nearest <= len(levels))) if clips else torch.ones_like(W)
    return x @ (W + inside * (delta - delta.detach())).T + base.bias


def where_it_begins(codes, levels):
    """Numbers in the cells, without the margins at their ends; the outermost levels end the grid."""
    ends = torch.cat((levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:]))
    i, j = torch.arange(D_OUT).double()[:, None], torch.arange(D_IN).double()
    a, b = 1024 + 15360 * (i * 0.7548776662466927 % 1), 1 + j * 0.5698402909980532 % 1
    share = 0.02 + 0.96 * (a.float() * b.float() % 1).double()
    return torch.lerp(ends[codes], ends[codes + 1], share) - levels[codes]


def gradients(y, layer, x):
    grad_y = random(*y.shape, seed=9)
    return [y, *torch.autograd.grad(y, [x, *layer.adapter.parameters()], grad_y)]


def same(a, b):
    return all(torch.allclose(s, t, rtol=1e-9, atol=1e-9) for s, t in zip(a, b, strict=True))


@settings(max_examples=25)
@given(st.data(), st.sampled_from(GRIDS), st.sampled_from(BLOCKS), st.sampled_from([0.01, 0.2, 2.0]), st.booleans())
@pytest.mark.parametrize("kind,operators", KINDS, **IDS)
def test_values_and_gradients_are_those_of_the_straight_through_formula(kind, operators, data, grid, block, size,
                                                                              keep):
    lam = data.draw(st.sampled_from(possible_lams(kind, LAMS, (D_OUT, D_IN))))
    layer, x = layer_of(kind, operators, lam, grid, block, size, keep=keep), random(2, 5, D_IN, seed=8).requires_grad_()
    found = gradients(layer(x), layer, x)
    assert same(found, gradients(plainly(layer, x), layer, x))
    assert same([merge_to_dense(layer, torch.float64)(x)], found[:1])


@pytest.mark.parametrize("kind,operators", KINDS, **IDS)
@pytest.mark.parametrize("grid", [("nf", 4), ("minmax", 2), ("absmax", 3)], ids=str)
def test_clipping_takes_the_gradient_away(kind, operators, grid):
    """Control: without the mask, the gradient is another, and it is that of the formula without the mask."""
    layer, x = layer_of(kind, operators, grid=grid, size=2.0), random(7, D_IN, seed=8).requires_grad_()
    masked, plain = gradients(layer(x), layer, x), gradients(plainly(layer, x, clips=False), layer, x)
    assert not same(masked, plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounded, "clipped", lambda position, grid: torch.zeros_like(position, dtype=torch.bool))
        assert same(gradients(layer(x), layer, x), plain)


@pytest.mark.parametrize("kind,operators", KINDS, **IDS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_as_trained_and_merged_are_the_same_bits(kind, operators, grid):
    check_merge(layer_of(kind, operators, grid=grid, size=0.3, dtype=torch.float32))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_as_trained_and_merged_are_the_same_bits_with_the_residual(grid):
    layer = layer_of(ADAPTERS["lora"], grid=grid, size=0.3, dtype=torch.float32, keep=True)
    check_merge(layer)
    with_residual = layer.weight()
    layer.residual = None
    assert not torch.equal(layer.weight(), with_residual)


def check_merge(layer):
    before = layer.base.codes.clone()
    codes = layer.base.quantized_weight().codes
    assert codes_moved(layer) == (merge_into_codes(layer).quantized_weight().codes != codes).float().mean() > 0
    assert merge_target(layer.base, layer.adapter).into == "codes"
    merged = merge_into_codes(layer)
    for dtype in (torch.float32, torch.bfloat16):
        x = random(3, 7, D_IN, seed=8, dtype=torch.float32).to(dtype)
        assert torch.equal(layer(x), merged(x)) and torch.equal(layer.eval()(x), merged(x))
        assert not torch.equal(layer(x), layer.base(x))
    assert torch.equal(layer.weight(), merged.dequantize()) and torch.equal(layer.base.codes, before)
    moved, kept = merged.state_dict(), layer.base.state_dict()
    assert {name for name in kept if not torch.equal(kept[name], moved[name])} == {"codes"}
    assert len(merged.codes) == len(before)  # the k bits


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_new_adapter_computes_what_the_base_does(grid):
    layer = layer_of(ADAPTERS["lora"], grid=grid, dtype=torch.float32)
    torch.nn.init.zeros_(layer.adapter.B)
    x = random(3, D_IN, seed=8, dtype=torch.float32)
    assert torch.equal(layer(x), layer.base(x)) and torch.equal(merge_into_codes(layer).codes, layer.base.codes)


@settings(max_examples=60)
@given(st.sampled_from(GRIDS), st.sampled_from(BLOCKS), st.booleans(), st.integers(0, 99))
def test_with_the_residual_a_new_adapter_computes_what_the_base_does(grid, block, by_gptq, seed):
    """On every grid and width, for codes of plain rounding and for those of GPTQ, which may not be the nearest."""
    original = random(D_OUT, D_IN, seed=seed).float()
    weight, layer = with_residual(original, grid, block, by_gptq)
    assert torch.equal(layer.weight(), weight.dequantize()) and torch.equal(merge_into_codes(layer).codes,
                                                                            layer.base.codes)
    position = (split_blocks(original, weight.grid.block) - per_block(weight.grid.factors()[1])) / per_block(
        weight.grid.factors()[0])
    exact = join_blocks(position).clamp(*ends(weight.grid.levels)) - weight.grid.levels[weight.codes.int()]
    inside = round_to_grid(original, weight.grid) == weight.codes
    assert inside.all() or by_gptq
    error = (layer.residual - exact)[inside].abs()
    assert (error <= exact[inside].abs() * 2 ** -8 + 1e-4).all()  # of a step


def with_residual(original, grid, block, by_gptq):
    quantizer = QUANTIZERS[grid[0]](*grid[1:], block)
    x = random(64, D_IN, seed=1)
    weight = gptq(original, x.T @ x, quantizer)[0] if by_gptq else quantizer.quantize(original)
    adapter = into_codes(nonzero_adapter(ADAPTERS["lora"], D_OUT, D_IN).float())
    torch.nn.init.zeros_(adapter.B)
    layer = adapted_layer(QuantLinear.from_weight(weight), adapter)
    layer.residual = residual_of(original, weight)
    return weight, layer


@pytest.mark.parametrize("fault,spoilt", [
    ("a residual of the nearest level, beside GPTQ's codes", lambda layer, exact: exact),
    ("a residual that is not rounded towards 0", lambda layer, exact: torch.where(exact < 0, -0.5, layer.residual))])
def test_a_residual_that_is_not_cut_would_be_noticed(fault, spoilt):
    original = random(D_OUT, D_IN, seed=5).float()
    weight, layer = with_residual(original, ("minmax", 3), BLOCKS[2], True)
    scale, offset = map(per_block, weight.grid.factors())
    position = join_blocks((split_blocks(original, weight.grid.block) - offset) / scale)
    layer.residual = spoilt(layer, position - weight.codes).half()
    assert not torch.equal(layer.weight(), weight.dequantize())


def test_a_rounded_adapter_beside_its_base_is_another_model():
    """Control, and the reason why --restore and PEFT refuse it."""
    layer, x = layer_of(ADAPTERS["lora"]), random(3, D_IN, seed=8)
    assert (layer.base(x) + layer.adapter.delta(x) - layer(x)).abs().max() > 1e-2
    check_restores(ADAPTERS["lora"])
    with pytest.raises(RestorationRefused, match="--merge-into codes trained delta_W through the rounding"):
        check_restores(ADAPTERS["lora"], "codes")


@pytest.mark.parametrize("kind,operators", KINDS, **IDS)
def test_backward_keeps_no_weight(kind, operators):
    layer, x = layer_of(kind, operators), random(3, D_IN, seed=8).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    own = {tuple(p.shape) for p in layer.adapter.parameters()} | {(3, D_IN)}
    assert (3, D_IN) in kept and all(shape in own or torch.Size(shape).numel() < D_OUT * D_IN for shape in kept)


def test_training_moves_codes_and_lowers_the_loss():
    layer, losses = layer_of(ADAPTERS["lora"], grid=("nf", 2), dtype=torch.float32), []
    layer.adapter.scaling = 1.0
    x, target = random(64, D_IN, seed=8, dtype=torch.float32), random(64, D_OUT, seed=3, dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.adapter.parameters(), lr=3e-2)
    for _ in range(40):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_held_weights_are_the_moved_ones():
    layer = layer_of(ADAPTERS["lora"], dtype=torch.float32)
    (name, held), = held_layers(torch.nn.ModuleDict({"a": layer}))
    assert name == "a" and torch.equal(held.dequantize(), layer.weight())


def test_what_has_no_codes_to_move_is_refused():
    adapter = into_codes(nonzero_adapter(ADAPTERS["lora"], D_OUT, D_IN))
    with pytest.raises(ValueError, match="its base is not quantized, so it has no codes to merge into"):
        adapted_layer(Linear(D_IN, D_OUT, bias=False), adapter)
    with pytest.raises(ValueError, match="peqa is not additive and merges into the scale"):
        into_codes(PEQA(D_OUT, D_IN, Block(4, 8)))


@pytest.mark.parametrize("keep", [False, True])
def test_no_step_waits_for_a_device(keep):
    """On tensors without values, whatever asks for one fails: a GPU would have to be waited for."""
    layer = layer_of(ADAPTERS["lora"], grid=("nf", 3), block=BLOCKS[2], dtype=torch.float32, keep=keep).to("meta")
    x = torch.empty(2, 3, D_IN, device="meta", dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape and all(p.grad is not None for p in layer.adapter.parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):  # control
        x.sum().item()
