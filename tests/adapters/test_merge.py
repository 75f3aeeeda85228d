"""Merging: exact if each block lies inside one tile, refused if not."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import ADAPTERS
from adapters import adapted_layer as adapted
from adapters.adapted import AdaptedLinear
from adapters.blora import BLoRA
from adapters.irqlora import IRQLoRA
from adapters.lam import Lam
from adapters.lora import LoRA
from adapters.merge import MergeRefused, merge_into_codes, merge_target, merge_to_dense
from adapters.operators import OPERATORS
from adapters.peqa import PEQA
from adapters.qablora import QABLoRA
from adapters.qalora import QALoRA
from model.llama import Linear
from quant import QUANTIZERS
from quant.grid import Block, dequantize
from quant.linear import QuantLinear
from tests.strategies import nonzero_adapter, possible_lams, random

EVERY = [(kind, bits) for kind in QUANTIZERS.values() for bits in kind.allowed_bits]
D_OUT, D_IN = 32, 16


def adapted_layer(quantizer, bits, block, adapter_kind, lam, dtype=torch.float64, D_out=D_OUT, D_in=D_IN):
    weight = quantizer(bits, block, storage=dtype).quantize(random(D_out, D_in, seed=5, dtype=dtype))
    base = QuantLinear.from_weight(weight, random(D_out, seed=6, dtype=dtype))
    return AdaptedLinear(base, nonzero_adapter(adapter_kind, D_out, D_in, lam).to(dtype))


SIZES = st.sampled_from([1, 2, 4, 8])


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(list(OPERATORS)))
def test_the_rule_holds_exactly_when_delta_weight_is_constant_on_every_block(n_in, n_out, lam_in, lam_out, operators):
    """Both directions, for each operator. Truncation and interval sampling skip inputs, so their adapters merge into
    blocks of a single weight only."""
    block, lam = Block(n_in, n_out), Lam(lam_in, lam_out)
    adapter = nonzero_adapter(QABLoRA, 16, 16, lam, operators=operators)
    delta = adapter.delta_weight()
    blocks = delta.unflatten(1, (-1, n_in)).unflatten(0, (-1, n_out))
    constant = (blocks - blocks[:, :1, :, :1]).abs().max() < 1e-12
    target = merge_target(QuantLinear.on_meta(16, 16, block, 4), adapter)
    assert (target.into == "offset") == target.keeps_codes == bool(constant)


@pytest.mark.parametrize("kind,bits", EVERY)
def test_lora_never_merges_into_codes(kind, bits):
    with pytest.raises(MergeRefused, match="lam_in % n_in == 0 and lam_out % n_out == 0; here the tile is "
                                           "lam_in=1 x lam_out=1, the block n_in=4 x n_out=8"):
        merge_into_codes(adapted_layer(kind, bits, Block(4, 8), LoRA, Lam(1, 1)), "layer")


@pytest.mark.parametrize("adapter,lam", [(QABLoRA, Lam(2, 8)), (QABLoRA, Lam(4, 4)), (BLoRA, Lam(2, 2))])
def test_a_tile_smaller_than_the_block_is_refused_with_layer_rule_and_sizes(adapter, lam):
    layer = adapted_layer(QUANTIZERS["minmax"], 4, Block(4, 8), adapter, lam)
    sizes = f"lam_in={lam.lam_in} x lam_out={lam.lam_out}, the block n_in=4 x n_out=8"
    with pytest.raises(MergeRefused, match=f"layer v_proj.*{sizes}"):
        merge_into_codes(layer, "v_proj")


def test_a_base_that_is_not_quantized_has_no_offsets_to_merge_into():
    layer = AdaptedLinear(Linear(D_IN, D_OUT).double(), nonzero_adapter(QABLoRA, D_OUT, D_IN, Lam(4, 8)))
    with pytest.raises(MergeRefused, match="not quantized"):
        merge_into_codes(layer, "layer")


LAMS = {LoRA: Lam(1, 1), IRQLoRA: Lam(1, 1), BLoRA: Lam(2, 2), QALoRA: Lam(4, 1), QABLoRA: Lam(4, 8)}


@pytest.mark.parametrize("adapter", [kind for kind in ADAPTERS.values() if kind.additive])
def test_merging_into_a_base_that_was_never_quantized_is_exact_as_well(adapter):
    lams = [LAMS[adapter]] if adapter in LAMS else possible_lams(adapter, dict.fromkeys(LAMS.values()), (D_OUT, D_IN))
    for lam in lams:
        layer = AdaptedLinear(Linear(D_IN, D_OUT).double(), nonzero_adapter(adapter, D_OUT, D_IN, lam))
        x = random(2, 3, D_IN, seed=8)
        torch.testing.assert_close(merge_to_dense(layer, torch.float64)(x), layer(x), rtol=0, atol=1e-10)
        assert (layer(x) - layer.base(x)).abs().max() > 1e-3


def test_a_float16_offset_is_float32_after_the_merge():
    """Rounding the merged offset back to float16 would be a second quantization."""
    weight = QUANTIZERS["minmax"](4, Block(4, 8)).quantize(random(D_OUT, D_IN, dtype=torch.float32))
    adapted = AdaptedLinear(QuantLinear.from_weight(weight), nonzero_adapter(QABLoRA, D_OUT, D_IN, Lam(4, 8)).float())
    exact = weight.dequantize() + adapted.adapter.delta_weight()
    kept = merge_into_codes(adapted)
    rounded = kept.with_offset(kept.offset.half())
    assert adapted.base.offset.dtype == torch.float16 and kept.offset.dtype == torch.float32
    assert (kept.dequantize() - exact).abs().max() < 1e-6 < (rounded.dequantize() - exact).abs().max()


def test_zero_offset_grids_take_a_merged_offset_as_well():
    layer = adapted_layer(QUANTIZERS["nf"], 4, Block(4, 8), QABLoRA, Lam(4, 8))
    assert layer.base.offset.shape == (1, 1)
    merged = merge_into_codes(layer, "layer")
    again = dequantize(merged.quantized_weight().codes, merged.quantized_weight().grid, torch.float64)
    torch.testing.assert_close(again, merged.dequantize(torch.float64), rtol=0, atol=0)
    assert merged.offset.shape == (D_OUT // 8, D_IN // 4)


MERGING = [(QABLoRA, "minmax", "offset"), (QABLoRA, "nf", "offset"), (PEQA, "intminmax", "scale")]


@pytest.mark.parametrize("kind,quantizer,into", MERGING)
def test_a_merge_keeps_the_very_buffer_of_codes(kind, quantizer, into):
    """All but the named factor are the base's own tensors. Controls: packing the codes again makes another buffer, and
    quantizing the sum with an adapter that does not merge makes other codes."""
    weight = QUANTIZERS[quantizer](4, Block(4, 8), torch.float64).quantize(random(D_OUT, D_IN, seed=5))
    base = QuantLinear.from_weight(weight, random(D_OUT, seed=6))
    layer = adapted(base, nonzero_adapter(kind, D_OUT, D_IN, Lam(4, 8), block=base.block))
    assert merge_target(base, layer.adapter).into == into
    merged = merge_into_codes(layer)
    assert merged.codes is base.codes and merged.levels is base.levels and merged.bias is base.bias
    other = {"offset": "scale", "scale": "offset"}[into]
    assert getattr(merged, other) is getattr(base, other) and getattr(merged, into) is not getattr(base, into)
    assert (merged.dequantize() - base.dequantize()).abs().max() > 1e-3
    again = QuantLinear.from_weight(merged.quantized_weight())
    assert torch.equal(again.codes, base.codes) and again.codes is not base.codes
    lora = adapted(QuantLinear.from_weight(weight), nonzero_adapter(LoRA, D_OUT, D_IN)).weight()
    requantized = QuantLinear.from_weight(QUANTIZERS[quantizer](4, Block(4, 8)).quantize(lora))
    assert not torch.equal(requantized.codes, base.codes)


@pytest.mark.parametrize("block", [Block(4, 8), Block(None, 1)], ids=str)
@pytest.mark.parametrize("kind,into", [(QABLoRA, "offset"), (PEQA, "scale"), (LoRA, "16 bits")])
def test_the_merge_question_needs_no_memory(kind, into, block):
    """Layers and adapters are on the meta device. There is a reason with 16 bits, and none otherwise."""
    base = QuantLinear.on_meta(D_OUT, D_IN, block, 4, zero_points=kind is PEQA)
    with torch.device("meta"):
        values = {"lam": Lam(1, 1) if kind is LoRA else Lam(*base.block_size), "rank": 2, "lora_alpha": 4.0,
                  "block": block, "operators": "avgpool", "scaling": "lora"}
        adapter = kind(D_OUT, D_IN, **{option: values[option] for option in kind.options})
    target = merge_target(base, adapter)
    assert target.into == into and bool(target.reason) == (into == "16 bits")
    assert merge_target(Linear(D_IN, D_OUT, device="meta"), adapter).into == "16 bits"
