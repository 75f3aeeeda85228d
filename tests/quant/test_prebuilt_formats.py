"""Layers as the tools of the hub store them: the codes, factors and weights that were packed come back bit for bit."""
import pytest
import torch

from quant.absmax import AbsMax
from quant.formats import format_of
from quant.grid import Block
from quant.integer_minmax import IntegerMinMax
from quant.linear import QuantLinear
from quant.minmax import MinMax
from quant.normal_float import NormalFloat
from quant.packing import unpack
from tests.cli import shows_an_object
from tests.prebuilt import (
    awq,
    awq_config,
    bitsandbytes,
    bitsandbytes_config,
    compressed,
    compressed_config,
    gptq,
    gptq_config,
    hqq,
    hqq_config,
    hqq_weight,
)


def dense(D_out=64, D_in=256) -> torch.Tensor:
    return torch.randn(D_out, D_in, generator=torch.Generator().manual_seed(0))


def check_same(read: QuantLinear, weight) -> None:
    """The codes, and the weights by the equation that needs no packing."""
    held = read.quantized_weight()
    assert torch.equal(held.codes, weight.codes)
    assert torch.equal(read.dequantize(), weight.dequantize())
    assert read.dequantize().std() > 0.5


def read_by(config: dict, parts: dict) -> QuantLinear:
    return format_of({"quantization_config": config}).layer("layer", parts)


def changed(config: dict, parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_by(config, parts)
    assert not shows_an_object(str(error.value)), error.value


# ---- GPTQ

@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(bits, group, version):
    weight = IntegerMinMax(bits, Block(256 if group == -1 else group, 1)).quantize(dense())
    config = gptq_config(bits, group, checkpoint_format={1: "gptq", 2: "gptq_v2"}[version])
    check_same(read_by(config, gptq(weight, version)), weight)


def test_gptq_by_hand():
    """Column 1 of 8 inputs and 8 outputs: input i holds the code i; zeros 0 .. 7 are stored as zeros - 1."""
    one = sum(i << 4 * i for i in range(8))
    stored = sum(((i - 1) & 15) << 4 * i for i in range(8))
    parts = {"qweight": torch.tensor([[0, one, 0, 0, 0, 0, 0, 0]], dtype=torch.int32),
             "qzeros": torch.tensor([[stored]], dtype=torch.int32),
             "scales": torch.full((1, 8), 0.5, dtype=torch.float16)}
    read = read_by(gptq_config(group=8), parts).dequantize()
    assert read[1].tolist() == [0.5 * (i - 1) for i in range(8)]
    assert read[:, 0].tolist() == [0.5 * (0 - zero) for zero in range(8)]


def test_gptq_with_inputs_in_another_order_is_refused():
    weight = IntegerMinMax(4, Block(32, 1)).quantize(dense())
    parts = gptq(weight)
    other = parts | {"g_idx": parts["g_idx"].flip(0).contiguous()}
    changed(gptq_config(desc_act=True), other, "layer: g_idx, .* neighbours .desc_act, act-order.: not read")
    check_same(read_by(gptq_config(desc_act=True), parts), weight)  # the usual order after all
    del parts["g_idx"]
    changed(gptq_config(desc_act=True), parts, "g_idx is missing, but desc_act is true")
    check_same(read_by(gptq_config(), parts), weight)


@pytest.mark.parametrize("config,message", [
    (gptq_config(5), "quantization_config: bits is 5, but only 2, 3, 4, 8 are read"),
    (gptq_config(group=0), "group_size is 0"), (gptq_config(desc_act=1), "desc_act is 1"),
    (gptq_config(checkpoint_format="marlin"), "checkpoint_format is marlin, but only gptq, gptq_v2 are read"),
    (gptq_config(is_marlin_format=True), "is_marlin_format is True, but only False is read"),
    (gptq_config(dynamic={"+:layers.0": {"bits": 8}}), "dynamic states sizes of single layers")])
def test_gptq_settings_that_are_not_read_are_named(config, message):
    changed(config, {}, message)


@pytest.mark.parametrize("part,message", [("scales", "layer: scales has the shape .* take"),
                                          ("qzeros", "layer: qzeros has the shape"), ("g_idx", "layer: g_idx")])
def test_gptq_parts_that_do_not_fit_are_named(part, message):
    parts = gptq(IntegerMinMax(4, Block(32, 1)).quantize(dense()))
    changed(gptq_config(), parts | {part: parts[part][:-1]}, message)
    changed(gptq_config(), parts | {"scales": parts["scales"].flatten()}, "scales")


# ---- AWQ

@pytest.mark.parametrize("group", [32, 128, -1])
def test_awq(group):
    weight = IntegerMinMax(4, Block(256 if group == -1 else group, 1)).quantize(dense())
    check_same(read_by(awq_config(group), awq(weight)), weight)
    check_same(read_by(awq_config(group, version="GEMM"), awq(weight)), weight)


@pytest.mark.parametrize("config,message", [
    (awq_config(version="gemv"), "quantization_config: version is gemv, but only gemm is read"),
    (awq_config(version=["gemm"]), "version is"), (awq_config(bits=3), "bits is 3"),
    (awq_config(zero_point=False), "zero_point is False"), (awq_config("128"), "group_size is 128, but must be")])
def test_awq_settings_that_are_not_read_are_named(config, message):
    changed(config, {}, message)


def test_awq_parts_that_do_not_fit_are_named():
    parts = awq(IntegerMinMax(4, Block(32, 1)).quantize(dense()))
    changed(awq_config(), parts | {"qzeros": parts["qzeros"][:3]}, "layer: qzeros has the shape .3, 8., but 256 inputs")
    changed(awq_config(64), parts, "layer: scales has the shape")


# ---- compressed-tensors

@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("kind", [AbsMax, IntegerMinMax])
def test_compressed_tensors(bits, group, kind):
    weight = kind(bits, Block(group or 256, 1)).quantize(dense())
    read = read_by(compressed_config(bits, group, kind is AbsMax), compressed(weight))
    assert torch.equal(read.dequantize(), weight.dequantize()) and read.dequantize().std() > 0.5
    shift = int(weight.grid.levels[0] - read.levels[0])  # the lowest level of bits is one that AbsMax has not
    assert torch.equal(unpack(read.codes, bits, (64, 256)), weight.codes + shift)


@pytest.mark.parametrize("config,message", [
    (compressed_config(7), "config_groups, group_0: num_bits is 7, but only 2, 3, 4, 5, 6, 8 are read"),
    (compressed_config(type="float"), "group_0: type is float"),
    (compressed_config(strategy="tensor"), "strategy is tensor, but only group, channel are read"),
    (compressed_config(dynamic=True), "dynamic is True"),
    (compressed_config(more={"format": "marlin-24"}), "format is marlin-24"),
    (compressed_config(more={"kv_cache_scheme": {"num_bits": 8}}), "kv_cache_scheme is stated"),
    (compressed_config(more={"sparsity_config": {"format": "sparse-24-bitmask"}}), "sparsity_config is stated"),
    (compressed_config(more={"config_groups": {}}), "config_groups is {}"),
    (compressed_config(more={"config_groups": {"a": {"weights": None}}}), "config_groups, a: states no weights"),
    (compressed_config(more={"config_groups": {"a": {"weights": {}, "input_activations": {"num_bits": 8}}}}),
     "config_groups, a: input_activations are quantized")])
def test_compressed_tensors_settings_that_are_not_read_are_named(config, message):
    changed(config, {}, message)


def test_compressed_tensors_parts_that_do_not_fit_are_named():
    parts = compressed(AbsMax(4, Block(32, 1)).quantize(dense()))
    changed(compressed_config(8), parts, "layer: 64 x 256 weights .* are none of the stated config_groups: "
            "8 bits in groups of 32 without zero points$")
    changed(compressed_config(symmetric=False), parts, "without zero points, are none")
    off = {"sparsity_config": {"format": "dense", "ignore": []}, "transform_config": {}}
    assert read_by(compressed_config(more=off), parts).bits == 4
    changed(compressed_config(), parts | {"weight_shape": torch.tensor([64, -1])}, "weight_shape is .64, -1.")
    changed(compressed_config(), parts | {"weight_g_idx": torch.arange(255, -1, -1) // 32}, "layer: g_idx")
    parts = compressed(IntegerMinMax(4, Block(32, 1)).quantize(dense()))
    changed(compressed_config(symmetric=False), parts | {"weight_zero_point": parts["weight_zero_point"][:2]},
            "layer: weight_zero_point has the shape .2, 8., but 64 outputs and 8 groups of 4 bits take .8, 8.")


# ---- bitsandbytes

@pytest.mark.parametrize("group", [64, 128])
def test_bitsandbytes_nf4(group):
    weight = NormalFloat(4, Block(group, 1)).quantize(dense())
    check_same(read_by(bitsandbytes_config(), bitsandbytes(weight)), weight)


@pytest.mark.parametrize("config,message", [
    (bitsandbytes_config(load_in_8bit=True), "load_in_8bit is true, but of bitsandbytes only 4 bits are read"),
    (bitsandbytes_config(bnb_4bit_quant_type="fp4"), "bnb_4bit_quant_type is fp4, but only nf4 is read"),
    ({"load_in_4bit": True}, "bnb_4bit_quant_type is fp4"),
    (bitsandbytes_config(bnb_4bit_quant_storage="bfloat16"), "bnb_4bit_quant_storage is bfloat16")])
def test_bitsandbytes_settings_that_are_not_read_are_named(config, message):
    changed(config, {}, message)


STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("text,message", [
    (b"{", "does not hold the state"), (b"[" * 9999, "does not hold the state"), (b"3", "does not hold the state"),
    (b'{"quant_type": "fp4"}', "quant_type is fp4"), (b'{"quant_type": "nf4", "blocksize": 64}', "'shape'"),
    (b'{"quant_type": "nf4", "blocksize": 64, "shape": [64, -256]}', "shape .64, -256."),
    (b'{"quant_type": "nf4", "blocksize": 96, "shape": [64, 256]}', "rows of 256 inputs do not fall into blocks of 96"),
    (b'{"quant_type": "nf4", "blocksize": 64, "shape": [64, 128]}', "layer: weight has the shape"),
    (b'{"quant_type": "nf4", "blocksize": 64, "shape": [64, 256], "nested_blocksize": 256, "nested_offset": 0.1}',
     "weight.nested_absmax is missing"),
    (b'{"quant_type": "nf4", "blocksize": 64, "shape": [64, 256], "nested_blocksize": 256, "nested_offset": 1e39}',
     "nested_offset 1e.39")])
def test_a_state_of_bitsandbytes_that_does_not_fit_is_named(text, message):
    parts = bitsandbytes(NormalFloat(4, Block(64, 1)).quantize(dense()))
    changed(bitsandbytes_config(), parts | {STATE: torch.tensor(list(text), dtype=torch.uint8)}, message)


# ---- HQQ

@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 256])
def test_hqq(bits, group):
    weight = MinMax(bits, Block(group, 1)).quantize(dense())
    read = read_by(hqq_config(), hqq(weight))
    assert torch.equal(unpack(read.codes, bits, (64, 256)), weight.codes)
    assert torch.equal(read.dequantize(), hqq_weight(weight)) and read.dequantize().std() > 0.5


@pytest.mark.parametrize("part,value,message", [
    ("axis", 0, "layer: nbits is 4, axis 0, .* but only bits 2, 3, 4, 5, 6, 8, axis 1"), ("nbits", 1, "nbits is 1, "),
    ("view_as_float", 1, "view_as_float 1"), ("group_size", 48, "group_size 48 of 256 inputs"),
    ("group_size", 64, "layer: W_q has the shape"), ("group_size", [32, 32], "must each be one number"),
    ("shape", [64, 0], "must each be one number"), ("nbits", 6, "W_q has the shape")])
def test_hqq_layers_that_are_not_read_are_named(part, value, message):
    parts = hqq(MinMax(4, Block(32, 1)).quantize(dense()))
    changed(hqq_config(), parts | {part: torch.tensor(value)}, message)
    changed(hqq_config(view_as_float=True), parts, "quantization_config: view_as_float is true")
