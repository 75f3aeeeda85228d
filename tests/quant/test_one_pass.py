"""The pass that a GPU compiles gives the bits of Eq. 1 computed plainly, with a compiler and without."""
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quant.grid
import quant.one_pass
from quant import QUANTIZERS
from quant.grid import dequantize, inexact_zeros
from quant.linear import QuantLinear
from quant.one_pass import Units, compiled_pass, dequantize_in_one_pass, plain_pass
from quant.spec import QuantSpec
from tests.quant.test_dequantize import EVERY, blocks, same_bits
from tests.strategies import weights

TYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")


def in_one_pass(layer, dtype):
    grid, shape = layer.grid, (layer.out_features, layer.in_features)
    return dequantize_in_one_pass(layer.codes, layer.bits, shape, grid.block.n_out, grid.levels, *grid.factors(),
                                  inexact_zeros(grid), dtype)


@given(st.data(), st.sampled_from(EVERY), blocks, st.booleans(), st.sampled_from(TYPES))
def test_the_plain_pass_gives_the_bits_of_the_equation(data, kind_and_bits, block, double, dtype):
    kind, bits = kind_and_bits
    weight = data.draw(weights(type(block)(block.n_in or 24, block.n_out), torch.float32))
    quantized = kind(bits, block, double_quant=double and kind.usual_storage == torch.float32).quantize(weight)
    layer, grid = QuantLinear.from_weight(quantized), quantized.grid
    units = Units.of(bits, tuple(weight.shape), layer.block_size[0], layer.block_size[1])
    if units is None:
        return
    found = plain_pass(units, dtype)(layer.codes, grid.levels, *grid.factors(), inexact_zeros(grid))
    assert same_bits(found.view(weight.shape), dequantize(quantized.codes, grid, dtype))


def test_zeros_of_trained_scales_are_zero():
    """A float32 scale times a zero point is rounded in the offset."""
    layer = QuantLinear.from_weight(QUANTIZERS["intminmax"](4, quant.grid.Block(32, 1)).quantize(torch.randn(8, 64)))
    layer = layer.with_scale(layer.scale.float() * 1.2345)
    units = Units.of(4, (8, 64), 32, 1)
    found = plain_pass(units, torch.float32)(layer.codes, layer.levels, *layer.grid.factors(),
                                             inexact_zeros(layer.grid)).view(8, 64)
    expected = dequantize(layer.quantized_weight().codes, layer.grid)
    assert torch.equal(found, expected) and (expected == 0).any()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("phrase,compilations", [("nf@64x1-4bit", 1), ("minmax@4x8-3bit", 2)])
def test_compiled_for_all_layers_of_a_model(phrase, compilations):
    """The inductor of the CPU. Blocks of several outputs are compiled once for each D_in."""
    compiled_pass.cache_clear()
    quantizer, counters = QuantSpec.parse(phrase).new_quantizer(), torch._dynamo.utils.counters
    before = counters["stats"]["unique_graphs"]
    for shape in ((512, 576), (1536, 576), (576, 1536)):
        quantized = quantizer.quantize(0.02 * torch.randn(shape))
        layer = QuantLinear.from_weight(quantized)
        assert torch.equal(in_one_pass(layer, torch.bfloat16), dequantize(quantized.codes, layer.grid, torch.bfloat16))
    assert counters["stats"]["unique_graphs"] - before == compilations


def nf4_layer(*shape):
    return QuantLinear.from_weight(QuantSpec.parse("nf@64x1-4bit").new_quantizer().quantize(torch.randn(shape)))


def test_small_layers_and_rows_that_end_within_a_word_are_left_to_several_passes():
    assert in_one_pass(nf4_layer(64, 64), torch.float32) is None
    assert Units.of(4, (3, 5), 5, 1) is None and Units.of(4, (4, 5), 5, 2) == Units(4, 2, 1, 5)
    assert Units.of(3, (8, 64), 4, 1) == Units(3, 1, 16, 4)


def test_without_a_compiler_one_line_says_so(monkeypatch, capsys):
    def broken(*rest, **more):
        raise RuntimeError("no C compiler\nand more")
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(quant.one_pass, "_failed", [])
    compiled_pass.cache_clear()
    layer = nf4_layer(512, 576)
    assert in_one_pass(layer, torch.bfloat16) is in_one_pass(layer, torch.bfloat16) is None
    assert capsys.readouterr().err == ("dequantization is not compiled into one pass and takes several: "
                                       "RuntimeError: no C compiler\n")
    compiled_pass.cache_clear()
