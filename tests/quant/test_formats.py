"""Layers in the formats of other tools are Eq. 1: written and read again, they hold the same codes and weights."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.absmax import AbsMax
from quant.formats import format_of
from quant.formats.mlx import BITS, GROUPS, MLX
from quant.formats.stored import stated_of
from quant.grid import Block
from quant.linear import QuantLinear
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from quant.packing import unpack

CONFIG = {"group_size": 64, "bits": 4, "mode": "affine"}


def layer_of(kind, bits, block, D_out=16, D_in=256, seed=0) -> QuantLinear:
    weight = torch.randn(D_out, D_in, generator=torch.Generator().manual_seed(seed))
    return QuantLinear.from_weight(kind(bits, block).quantize(weight))


def writer_of(layer: QuantLinear) -> MLX:
    return MLX.of(MLX.config_of({"layer": MLX.setting_for(stated_of(layer))}))


def written(layer: QuantLinear, dtype=None) -> dict:
    return writer_of(layer).write("layer", layer, dtype)


def again(layer: QuantLinear, dtype=None) -> QuantLinear:
    """Written as MLX and read."""
    return writer_of(layer).layer("layer", written(layer, dtype))


@given(st.sampled_from(BITS), st.sampled_from([Block(32, 1), Block(64, 2), Block(128, 1), Block(256, 8)]),
       st.sampled_from([MinMax, AbsMax]), st.integers(0, 99))
def test_mlx_holds_every_code_and_every_weight(bits, block, kind, seed):
    layer = layer_of(kind, bits, block, seed=seed)
    read = again(layer)
    assert torch.equal(read.codes, layer.codes) and read.block.n_out == 1 and read.block.n_in in GROUPS
    assert (read.dequantize(torch.float64) - layer.dequantize(torch.float64)).abs().max() < 1e-6
    assert torch.equal(read.dequantize(), layer.dequantize()) or kind is AbsMax  # biases = scale * low are rounded once


def test_a_word_of_mlx_holds_the_first_code_in_its_lowest_bits():
    layer = layer_of(MinMax, 4, Block(32, 1))
    words, codes = written(layer)["weight"], unpack(layer.codes, 4, (16, 256))
    assert words.dtype == torch.uint32 and words.shape == (16, 32)
    first = sum(int(code) << (4 * i) for i, code in enumerate(codes[0, :8]))
    assert int(words[0, 0].to(torch.int64)) == first


def test_scales_may_be_negative():
    layer = layer_of(MinMax, 4, Block(32, 1))
    upside_down = layer.with_scale(-layer.scale)
    assert torch.equal(again(upside_down).dequantize(), upside_down.dequantize())
    assert not torch.equal(upside_down.dequantize(), layer.dequantize())


@pytest.mark.parametrize("kind,bits,block,message", [
    (MinMax, 4, Block(4, 8), "blocks of 4x8 .* do not fall into MLX's groups of 32, 64, 128 inputs x 1 output"),
    (MinMax, 4, Block(16, 1), "blocks of 16x1"), (NormalFloat, 4, Block(64, 1), "levels that are no whole numbers")])
def test_what_mlx_cannot_hold_is_refused_by_name(kind, bits, block, message):
    with pytest.raises(ValueError, match=message):
        written(layer_of(kind, bits, block))


def test_factors_are_rounded_to_the_type_that_was_asked_for_and_to_no_smaller_one():
    layer = layer_of(MinMax, 4, Block(32, 1))
    assert {part.dtype for part in written(layer).values()} == {torch.uint32, torch.float16}
    moved = layer.with_offset(layer.offset.float() + 1e-4)
    assert written(moved)["biases"].dtype == torch.float32
    rounded = again(moved, torch.bfloat16)
    assert rounded.scale.dtype == torch.bfloat16 and torch.equal(rounded.codes, moved.codes)
    assert (rounded.dequantize() - moved.dequantize()).abs().max() > 1e-4
    with pytest.raises(ValueError, match="scales up to .* are beyond torch.float16: give --dtype float32"):
        written(layer.with_scale(layer.scale.float() * 1e6), torch.float16)


@pytest.mark.parametrize("config,message", [
    ({"quantization": {**CONFIG, "mode": "mxfp4"}}, "mode is 'mxfp4', and only affine is read"),
    ({"quantization": {**CONFIG, "bits": 7}}, "quantization: bits is 7, but must be one of 2, 3, 4"),
    ({"quantization": {**CONFIG, "bits": True}}, "bits is True"),
    ({"quantization": {**CONFIG, "group_size": 0}}, "group_size is 0, but must be one of 32, 64, 128"),
    ({"quantization": {**CONFIG, "model.layers.0.mlp.up_proj": {"bits": 1}}}, "up_proj: bits is 1"),
    ({"quantization": CONFIG, "quantization_config": {**CONFIG, "bits": 8}}, "quantization and quantization_config")])
def test_settings_that_are_wrong_or_not_read_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        format_of(config)


def test_single_layers_may_have_sizes_of_their_own():
    stored = format_of({"quantization": {**CONFIG, "up": {"bits": 8}, "down": False}})
    assert stored.stated("up", {"weight": (8, 32), "scales": (8, 2), "biases": (8, 2)}, {}).bits == 8
    assert stored.stated("q", {"weight": (8, 16), "scales": (8, 2), "biases": (8, 2)}, {}).bits == 4
    with pytest.raises(ValueError, match=r"q: weight has the shape \[8, 32\], but 4 bits in groups of 64"):
        stored.stated("q", {"weight": (8, 32), "scales": (8, 2), "biases": (8, 2)}, {})
    assert format_of({}) is None and format_of({"quantization_config": {"quant_method": "aqlm"}}) is None
