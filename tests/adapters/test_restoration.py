"""Post-LoRA Restoration of single layers (Kanda & Hatano, Sec. 2): W = W_l + delta_W, for any adapter and any base."""
import itertools

import pytest
import torch
from hypothesis import given

from adapters import ADAPTERS, adapted_layer
from adapters.adapted import AdaptedLinear, dense_weight
from adapters.lam import Lam
from adapters.merge import MergeRefused, merge_into_codes, merge_to_dense
from adapters.operators import OPERATORS
from adapters.peqa import PEQA
from adapters.restoration import (
    LayerChange,
    RestorationRefused,
    check_restores,
    layer_change,
    overall_ratio,
)
from adapters.scaleoffset import ScaleOffset
from model.llama import Linear
from quant import QUANTIZERS
from quant.grid import Block
from quant.linear import QuantLinear
from tests.strategies import nonzero_adapter, possible_lams, random, seeds, tiled_layers

ADDITIVE = [(kind, operators) for kind in ADAPTERS.values() if kind.additive
            for operators in (OPERATORS if "operators" in kind.options else ["avgpool"])]
LAMS = {"lora": Lam(1, 1), "irqlora": Lam(1, 1), "blora": Lam(8, 8), "qalora": Lam(8, 1), "qablora": Lam(4, 8)}
D_OUT, D_IN = 32, 16
CASES = [(kind, operators, lam) for kind, operators in ADDITIVE for lam in (
    [LAMS[kind.name]] if kind.name in LAMS else possible_lams(kind, dict.fromkeys(LAMS.values()), (D_OUT, D_IN)))]
WEIGHT, BIAS = random(D_OUT, D_IN, seed=5), random(D_OUT, seed=6)


def base_of(name, bits, block):
    return QuantLinear.from_weight(QUANTIZERS[name](bits, block, torch.float64).quantize(WEIGHT), BIAS)


def original():
    layer = Linear(D_IN, D_OUT).double()
    layer.weight.data, layer.bias.data = WEIGHT.clone(), BIAS.clone()
    return layer.requires_grad_(False)


def ids(case):
    kind, operators, lam = case
    return f"{kind.name}-{operators}" if kind.name in LAMS else f"{kind.name}-{operators}-{lam}"


@pytest.mark.parametrize("kind,operators,lam", CASES, ids=map(ids, CASES))
@pytest.mark.parametrize("name", QUANTIZERS)
def test_restoring_is_one_assignment_and_leaves_the_adapter_as_it_was(kind, operators, lam, name):
    """x (W_l + delta_W)^T + bias, on every base of every width and on the original weights."""
    adapter = nonzero_adapter(kind, D_OUT, D_IN, lam, operators=operators)
    delta, x = adapter.delta_weight(), random(3, D_IN, seed=9)
    adapted = adapted_layer(base_of(name, 2, Block(4, 8)), adapter)
    trained = adapted(x)
    for base in [*(base_of(name, bits, Block(4, 8)) for bits in QUANTIZERS[name].allowed_bits), original()]:
        adapted.base = base
        assert torch.allclose(adapted(x), x @ (dense_weight(base, torch.float64) + delta).T + BIAS, rtol=0, atol=1e-10)
        assert torch.equal(adapter.delta_weight(), delta)
    assert torch.allclose(adapted(x), x @ (WEIGHT + delta).T + BIAS, rtol=0, atol=1e-10)
    for other in (trained, original()(x)):  # controls: base and adapter both count
        assert (adapted(x) - other).abs().max() > 1e-3


@pytest.mark.parametrize("kind,operators,lam", CASES, ids=map(ids, CASES))
def test_a_restored_layer_merges_into_the_l_bit_offsets_exactly_or_is_refused(kind, operators, lam):
    """If the l-bit blocks lie inside the tiles: equal in float64, with the codes and scales of the l-bit base."""
    x, merged_some = random(3, D_IN, seed=9), False
    blocks = Block(4, 8), Block(8, 1), Block(2, 4), Block(16, 1)
    for name, bits, block in itertools.product(("minmax", "absmax", "intminmax", "nf"), (2, 4, 8), blocks):
        if bits not in QUANTIZERS[name].allowed_bits:
            continue
        base = base_of(name, bits, block)
        restored = AdaptedLinear(base, nonzero_adapter(kind, D_OUT, D_IN, lam, operators=operators))
        tile = restored.adapter.tile
        if tile.lam_in % block.n_in or tile.lam_out % block.n_out:
            with pytest.raises(MergeRefused, match="lam_in % n_in == 0 and lam_out % n_out == 0"):
                merge_into_codes(restored, "layer")
            continue
        merged, merged_some = merge_into_codes(restored, "layer"), True
        assert torch.allclose(merged(x), restored(x), rtol=0, atol=1e-10)
        assert merged.codes is base.codes and merged.scale is base.scale
        other = merge_into_codes(AdaptedLinear(base_of(name, 2 if bits != 2 else 4, block), restored.adapter), "layer")
        assert (other(x) - restored(x)).abs().max() > 1e-3  # control: merged into another width, it is another layer
    assert merged_some == (lam != Lam(1, 1) and operators == "avgpool")
    adapter = nonzero_adapter(kind, D_OUT, D_IN, lam, operators=operators)
    dense = merge_to_dense(AdaptedLinear(original(), adapter), torch.float64)
    assert torch.allclose(dense.weight, WEIGHT + adapter.delta_weight(), rtol=0, atol=1e-10)


def test_peqa_is_refused_with_the_reason():
    with pytest.raises(RestorationRefused, match="a factor on each scale of the k-bit codes"):
        check_restores(PEQA)
    with pytest.raises(RestorationRefused, match="scaleoffset does not transfer to another base: it trained a factor"):
        check_restores(ScaleOffset)
    for kind, _ in ADDITIVE:
        check_restores(kind)


def test_peqas_factors_on_another_bases_scales_are_not_the_layer_that_was_trained():
    """Why it is refused: doubling the scales of a 2-bit base moves the weights by 2-bit steps; on 8 bits the same
    factors, the only thing trained, move them otherwise, by more than restoring any additive adapter would."""
    block = Block(4, 8)
    trained = adapted_layer(base_of("intminmax", 2, block), nonzero_adapter(PEQA, D_OUT, D_IN, block=block))
    moved = trained.weight() - trained.base.dequantize(torch.float64)
    elsewhere = adapted_layer(base_of("intminmax", 8, block), trained.adapter)
    assert (elsewhere.weight() - elsewhere.base.dequantize(torch.float64) - moved).norm() > 0.1 * moved.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
@given(seed=seeds)
def test_the_l_bit_error_falls_as_l_rises(name, seed):
    weight = random(64, 64, seed=seed)
    errors = [(QUANTIZERS[name](bits, Block(16, 4)).quantize(weight).dequantize(torch.float64) - weight).norm().item()
              for bits in QUANTIZERS[name].allowed_bits]
    assert all(narrow > 1.5 * wide for narrow, wide in itertools.pairwise(errors))


@given(tiled_layers(), seeds)
def test_a_change_is_two_norms_and_their_ratio(layer, seed):
    lam, D_out, D_in = layer
    W_l, W_k = random(D_out, D_in, seed=seed), random(D_out, D_in, seed=seed + 1)
    adapter = nonzero_adapter(ADAPTERS["qablora"], D_out, D_in, lam, seed=seed)
    change = layer_change("layer", W_l, W_k, adapter, 10 * D_out * D_in)
    assert change.base == pytest.approx((W_l - W_k).square().sum().sqrt().item(), rel=1e-10)
    assert change.adapter == pytest.approx(adapter.delta_weight().square().sum().sqrt().item(), rel=1e-10)
    assert change.ratio == pytest.approx(change.base / change.adapter)
    assert change.bits_per_weight == 80
    assert layer_change("layer", W_l, W_l, adapter, 1).ratio == 0
    assert layer_change("layer", W_l, W_k, None, 1).ratio is None


def test_the_overall_ratio_adds_up_squares_and_counts_layers_without_an_adapter():
    changes = [LayerChange("a", 3.0, 1.0, 4, 4), LayerChange("b", 4.0, 0.0, 4, 4), LayerChange("c", 0.0, 2.0, 4, 4)]
    assert overall_ratio(changes) == pytest.approx(5 / 5 ** 0.5)
    assert overall_ratio([LayerChange("a", 3.0, 0.0, 4, 4)]) is None is overall_ratio([])
