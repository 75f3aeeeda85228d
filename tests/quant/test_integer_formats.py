"""GPTQ and compressed-tensors out: what is written is what the tests pack by the description, bit by bit, and is read
again as the layer that it was."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.absmax import AbsMax
from quant.formats import CompressedTensors, format_of
from quant.formats.compressed_tensors import BITS as COMPRESSED_BITS
from quant.formats.gptq import BITS as GPTQ_BITS
from quant.formats.gptq import GPTQ
from quant.formats.stored import stated_of
from quant.grid import Block, Grid, QuantizedWeight
from quant.integer_minmax import IntegerMinMax
from quant.linear import QuantLinear
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from tests.prebuilt import compressed, compressed_config, gptq, gptq_config

BLOCKS = [Block(32, 1), Block(64, 2), Block(128, 8), Block(256, 1)]
KINDS = [GPTQ, CompressedTensors]


def weight_of(quantizer, bits, block, seed=0) -> QuantizedWeight:
    dense = torch.randn(64, 256, generator=torch.Generator().manual_seed(seed))
    return quantizer(bits, block).quantize(dense + 0.3)


def layer_of(*settings) -> QuantLinear:
    return QuantLinear.from_weight(weight_of(*settings))


def written(kind, layer: QuantLinear, dtype=None) -> tuple[dict, dict]:
    """What config.json states, and the parts."""
    config = kind.config_of({"layer": kind.setting_for(stated_of(layer))})
    return config, kind.of(config).write("layer", layer, dtype)


def same(parts: dict, others: dict) -> None:
    assert parts.keys() == others.keys()
    for name, tensor in parts.items():
        assert tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]) and tensor.is_contiguous(), name


@pytest.mark.parametrize("bits", GPTQ_BITS)
@pytest.mark.parametrize("block", [Block(32, 1), Block(256, 1)])
def test_gptq_is_written_as_its_description_says(bits, block):
    weight = weight_of(IntegerMinMax, bits, block)
    config, parts = written(GPTQ, QuantLinear.from_weight(weight))
    same(parts, gptq(weight, version=2))
    group = -1 if block.n_in == 256 else 32
    stated = config["quantization_config"]
    assert stated == gptq_config(bits, group, checkpoint_format="gptq_v2", lm_head=False)
    symmetric = weight_of(AbsMax, bits, block)
    config, parts = written(GPTQ, QuantLinear.from_weight(symmetric))
    assert config["quantization_config"]["sym"] and config["quantization_config"]["checkpoint_format"] == "gptq"
    half = 2 ** (bits - 1)
    moved = QuantizedWeight(symmetric.codes + 1, weight.grid)  # 0 .. 2^bits - 1, of which the lowest is not used
    same({"qweight": gptq(moved)["qweight"]}, {"qweight": parts["qweight"]})
    assert set(QuantLinear.from_weight(symmetric).levels.tolist()) == set(range(1 - half, half))
    assert torch.equal(GPTQ.of(config).layer("layer", parts).dequantize(), symmetric.dequantize())


@pytest.mark.parametrize("bits", COMPRESSED_BITS)
@pytest.mark.parametrize("block", [Block(32, 1), Block(256, 1)])
@pytest.mark.parametrize("quantizer", [AbsMax, IntegerMinMax])
def test_compressed_tensors_is_written_as_its_description_says(bits, block, quantizer):
    weight = weight_of(quantizer, bits, block)
    config, parts = written(CompressedTensors, QuantLinear.from_weight(weight))
    same(parts, compressed(weight))
    by_hand = compressed_config(bits, None if block.n_in == 256 else 32, quantizer is AbsMax)
    assert format_of(config) == format_of({"quantization_config": by_hand})


@given(st.sampled_from(KINDS), st.sampled_from(GPTQ_BITS), st.sampled_from(BLOCKS),
       st.sampled_from([AbsMax, IntegerMinMax]), st.integers(0, 99))
def test_every_code_and_every_weight_is_held(kind, bits, block, quantizer, seed):
    layer = layer_of(quantizer, bits, block, seed)
    config, parts = written(kind, layer)
    read = format_of(config).layer("layer", parts)
    assert torch.equal(read.dequantize(), layer.dequantize()) and read.block.n_out == 1
    assert read.block.n_in == (256 if block.n_in == 256 else block.n_in)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_point_of_0_is_read_as_0(kind):
    """In version 1 of GPTQ it would be 2^bits - 1, which tools read as they like."""
    layer = QuantLinear.from_weight(IntegerMinMax(4, Block(32, 1)).quantize(torch.rand(32, 64) + 1))
    assert not layer.grid.offset.integers(layer.scale.shape).any()
    config, parts = written(kind, layer)
    assert torch.equal(format_of(config).layer("layer", parts).dequantize(), layer.dequantize())
    if kind is GPTQ:
        assert not parts["qzeros"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_scales_get_16_bits_unless_they_are_asked_for_in_more(kind):
    layer = layer_of(IntegerMinMax, 4, Block(32, 1))
    trained = layer.with_scale(layer.scale.float() * 1.0001)
    scales = {"gptq": "scales", "compressed-tensors": "weight_scale"}[kind.name]
    assert written(kind, trained)[1][scales].dtype == torch.float16
    assert written(kind, layer.with_scale(layer.scale.bfloat16()))[1][scales].dtype == torch.bfloat16
    config, parts = written(kind, trained, torch.float32)
    assert torch.equal(kind.of(config).layer("layer", parts).dequantize(), trained.dequantize())
    with pytest.raises(ValueError, match="up to .* are beyond torch.float16: give --dtype float32"):
        written(kind, layer.with_scale(layer.scale.float() * 1e6))


@pytest.mark.parametrize("kind", KINDS)
def test_real_offsets_are_held_only_if_they_are_whole_multiples(kind):
    layer = layer_of(MinMax, 4, Block(32, 1))
    with pytest.raises(ValueError, match=r"\d+ of 512 offsets are no whole multiples .* intminmax or absmax"):
        written(kind, layer)
    whole = layer.with_offset(-layer.scale.float() * torch.arange(16).repeat(32).view(64, 8))
    config, parts = written(kind, whole)
    assert torch.equal(kind.of(config).layer("layer", parts).dequantize(), whole.dequantize())
    with pytest.raises(ValueError, match="zeros from 1 to 16 are beyond 0 .. 15"):
        written(kind, layer.with_offset(-layer.scale.float() * torch.arange(1, 17).repeat(32).view(64, 8)))
    still = layer.with_scale(torch.zeros_like(layer.scale))  # one value a block, which is not 0
    with pytest.raises(ValueError, match="no whole multiples"):
        written(kind, still)


@pytest.mark.parametrize("kind,layer,message", [
    (GPTQ, (NormalFloat, 4, Block(64, 1)), "levels that are no whole numbers"),
    (CompressedTensors, (NormalFloat, 4, Block(64, 1)), "levels that are no whole numbers"),
    (GPTQ, (IntegerMinMax, 4, Block(4, 8)), "blocks of 4x8 .* groups of 32, 64, 128 inputs x 1 output, nor into whole"),
    (CompressedTensors, (IntegerMinMax, 4, Block(16, 1)), "blocks of 16x1"),
    (GPTQ, (AbsMax, 5, Block(32, 1)), "5 bits have no place in GPTQ, which has 2, 3, 4, 8")])
def test_what_has_no_place_is_refused_by_name(kind, layer, message):
    with pytest.raises(ValueError, match=message):
        written(kind, layer_of(*layer))


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_of_a_symmetric_layer_is_not_dropped(kind):
    layer = layer_of(AbsMax, 4, Block(256, 1))
    scale = layer.scale[:1].expand(64, 1)
    one = QuantLinear(64, 256, layer.codes, Grid(layer.levels, scale, scale[:1], layer.block, 4))
    with pytest.raises(ValueError, match="its offset is not 0"):
        written(kind, one)


def test_words_that_are_not_filled_are_refused():
    def layer(D_out: int, D_in: int, bits: int = 4) -> QuantLinear:
        return QuantLinear.from_weight(IntegerMinMax(bits, Block(D_in, 1)).quantize(torch.randn(D_out, D_in)))
    for sizes in ((44, 64), (40, 60), (16, 64, 3)):
        with pytest.raises(ValueError, match=f"{sizes[1]} inputs and {sizes[0]} outputs of . bits do not fill whole"):
            written(GPTQ, layer(*sizes))
    assert written(CompressedTensors, layer(44, 64))[1]["weight_zero_point"].shape == (6, 1)  # 4 zeros are not used
    with pytest.raises(ValueError, match="12 codes of 4 bits do not fill"):
        written(CompressedTensors, layer(40, 12))


# ---- config.json of whole models

def settings(kind, **blocks: str) -> dict:
    return {name: kind.setting_for(stated_of(layer_of(quantizer, bits, Block.parse(block))))
            for name, (quantizer, bits, block) in blocks.items()}


def test_layers_of_gptq_share_one_size():
    with pytest.raises(ValueError, match="a has 4 bits in groups of 32, b: 4 bits in groups of 64"):
        GPTQ.config_of(settings(GPTQ, a=(AbsMax, 4, "32x1"), b=(AbsMax, 4, "64x1")))
    with pytest.raises(ValueError, match="a has 4 bits in groups of 32, b: 8 bits"):
        GPTQ.config_of(settings(GPTQ, a=(AbsMax, 4, "32x1"), b=(AbsMax, 8, "32x1")))
    stated = GPTQ.config_of(settings(GPTQ, a=(AbsMax, 4, "32x1"), b=(IntegerMinMax, 4, "32x2")), ["x.0.y"])
    stated = stated["quantization_config"]
    assert not stated["sym"] and stated["checkpoint_format"] == "gptq_v2"
    assert stated["dynamic"] == {r"-:x\.0\.y$": {}} and GPTQ.of({"quantization_config": stated}).group_size == 32


def test_layers_of_compressed_tensors_may_differ():
    held = settings(CompressedTensors, a=(AbsMax, 4, "32x1"), b=(AbsMax, 4, "32x1"), c=(IntegerMinMax, 8, "rowx1"))
    stated = CompressedTensors.config_of(held, ["d"])["quantization_config"]
    assert [group["targets"] for group in stated["config_groups"].values()] == [["Linear"], ["c"]]
    assert stated["ignore"] == ["d", "lm_head"]
    assert len(CompressedTensors.of({"quantization_config": stated}).schemes) == 2
