"""What trains is what is merged, where the rule holds: one product, the same bits, the gradients of the plain path."""
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from adapters import adapted, merged_form
from adapters import adapted_layer as adapted_layer_of
from adapters.adapted import AdaptedLinear
from adapters.blora import BLoRA
from adapters.lam import Lam, group_mean, group_sum
from adapters.lora import LoRA
from adapters.merge import merge_into_codes, merge_target, merged_offset
from adapters.peqa import PEQA
from adapters.qablora import QABLoRA
from adapters.qalora import QALoRA
from quant import QUANTIZERS
from quant.grid import Block
from quant.linear import QuantLinear
from tests.strategies import nonzero_adapter, random

D_OUT, D_IN = 32, 64
TYPES = [torch.float32, torch.bfloat16, torch.float16]
FITTING = [(QALoRA, Lam(32, 1), Block(32, 1)), (QALoRA, Lam(16, 1), Block(8, 1)), (QABLoRA, Lam(4, 8), Block(4, 8)),
           (QABLoRA, Lam(8, 8), Block(4, 2)), (BLoRA, Lam(4, 4), Block(4, 4)), (BLoRA, Lam(8, 8), Block(8, 2))]


def layer_of(kind, lam: Lam, block: Block, grid: str = "minmax", bits: int = 4, dropout: float = 0.0) -> AdaptedLinear:
    weight = QUANTIZERS[grid](bits, block).quantize(random(D_OUT, D_IN, seed=5, dtype=torch.float32))
    base = QuantLinear.from_weight(weight, random(D_OUT, seed=6, dtype=torch.float32))
    adapter = PEQA(D_OUT, D_IN, block) if kind is PEQA else nonzero_adapter(kind, D_OUT, D_IN, lam)
    if kind is PEQA:
        torch.nn.init.normal_(adapter.log_factor, std=0.1)
    return adapted_layer_of(base, adapter.float(), dropout)


@contextmanager
def plain_path():
    """Inside, every adapted layer is base(x) + delta(x)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapted, "has_merged_form", lambda base, adapter: False)
        yield


def x_of(dtype: torch.dtype, *shape: int) -> Tensor:
    return random(*shape or (3, 7), D_IN, seed=8, dtype=torch.float32).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("grid,bits", [(name, bits) for name, kind in QUANTIZERS.items()
                                       for bits in kind.allowed_bits if bits in (2, 3, 4)])
@pytest.mark.parametrize("kind,lam,block", [*FITTING, (PEQA, Lam(1, 1), Block(8, 4))],
                         ids=lambda value: getattr(value, "name", str(value)))
def test_as_trained_and_merged_are_the_same_bits(kind, lam, block, grid, bits, dtype):
    if kind is PEQA and grid != "intminmax":
        pytest.skip("peqa trains the scales of grids with integer zero points")
    layer, x = layer_of(kind, lam, block, grid, bits), x_of(dtype)
    merged = merge_into_codes(layer)
    assert torch.equal(layer(x), merged(x)) and not torch.equal(layer(x), layer.base(x))
    with torch.no_grad():
        assert torch.equal(layer(x), merged(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_plain_path_rounds_base_and_adapter_apart(dtype):
    """Control: otherwise the test above would show nothing."""
    layer, x = layer_of(QABLoRA, Lam(4, 8), Block(4, 8)), x_of(dtype)
    with plain_path():
        assert not torch.equal(layer(x), merge_into_codes(layer)(x))


@pytest.mark.parametrize("kind,lam,block", FITTING, ids=lambda value: getattr(value, "name", str(value)))
@pytest.mark.parametrize("wrong", [None, "scaling", "transposed"])
def test_values_and_gradients_are_those_of_the_plain_path(kind, lam, block, wrong, monkeypatch):
    layer, x = layer_of(kind, lam, block).double(), x_of(torch.float64).requires_grad_()
    grad_y = random(3, 7, D_OUT, seed=9, dtype=torch.float64)
    layer.adapter.scaling = 1.5
    trained = [x, *layer.adapter.parameters()]
    with plain_path():
        expected_y = layer(x)
        expected = torch.autograd.grad(expected_y, trained, grad_y)
    if wrong == "scaling":
        layer.adapter.scaling = 3.0
    if wrong == "transposed":
        monkeypatch.setattr(merged_form, "group_sum", lambda x, n: group_mean(x.flip(-1), n) * n)
    y = layer(x)
    found = torch.autograd.grad(y, trained, grad_y)
    close = [torch.allclose(a, b, rtol=0, atol=1e-10)
             for a, b in zip((y, *found), (expected_y, *expected), strict=True)]
    assert all(close) == (wrong is None)


def test_the_offset_is_the_plain_sum_bit_for_bit():
    """`offset_with` reads one number a tile; the dense matrix is its definition."""
    layer = layer_of(QABLoRA, Lam(8, 8), Block(4, 2))
    layer.adapter.scaling = 0.3
    delta, (_, offset) = layer.adapter.delta_weight().detach(), layer.base.grid.factors()
    assert torch.equal(merged_offset(layer.base, layer.adapter), offset.float() + delta[::2, ::4])


def test_backward_keeps_the_sums_of_x_and_no_weight():
    layer, x = layer_of(QABLoRA, Lam(4, 8), Block(4, 8)), x_of(torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    assert kept == [(3, 7, D_IN // 4)]


@pytest.mark.parametrize("kind,lam,block", [(LoRA, Lam(1, 1), Block(4, 8)), (BLoRA, Lam(2, 2), Block(4, 4))],
                         ids=lambda value: getattr(value, "name", str(value)))
def test_where_the_rule_does_not_hold_the_paths_stay_apart(kind, lam, block):
    layer = layer_of(kind, lam, block)
    assert not merge_target(layer.base, layer.adapter).keeps_codes
    assert not merged_form.has_merged_form(layer.base, layer.adapter)


def test_dropout_needs_the_plain_path_in_training_only():
    layer, x = layer_of(QABLoRA, Lam(4, 8), Block(4, 8), dropout=0.5), x_of(torch.float32)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), merge_into_codes(layer)(x))


def losses(layer: AdaptedLinear, steps: int) -> list[float]:
    optimizer, found = torch.optim.AdamW(layer.adapter.parameters(), lr=1e-2), []
    x, target = x_of(torch.float32, 16), random(16, D_OUT, seed=3, dtype=torch.float32)
    for _ in range(steps):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("kind,lam,block", FITTING, ids=lambda value: getattr(value, "name", str(value)))
def test_float32_training_follows_the_plain_path_to_rounding(kind, lam, block):
    """60 steps of AdamW: the losses fall, and differ by less than 1e-5 of themselves."""
    merged = losses(layer_of(kind, lam, block), 60)
    with plain_path():
        plain = losses(layer_of(kind, lam, block), 60)
    assert plain[-1] < 0.98 * plain[0] and merged == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_group_sum_is_rounded_once(n, dtype):
    x = x_of(dtype)
    wide = x.double().unflatten(-1, (-1, n)).sum(-1)
    torch.testing.assert_close(group_sum(x, n).double(), wide, rtol=0.0 if dtype.itemsize == 8 else 2 ** -8, atol=1e-10)
    assert group_sum(x, n).dtype == dtype
