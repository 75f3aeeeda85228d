"""The block types of GGUF are this project's grid."""
import numpy
import pytest
import torch

from model.gguf_file import dense_rows
from quant.factors import ZeroPoints
from quant.gguf_blocks import (
    BLOCK_TYPES,
    codes_of_bits_and_halves,
    codes_of_halves,
    codes_of_signed,
    in_file_blocks,
)
from quant.grid import Block, Grid, QuantizedWeight
from quant.linear import QuantLinear
from tests.gguf_files import gguf
from tests.strategies import random

KINDS = list(BLOCK_TYPES)


def rows_of(kind: str, D_out=40, D_in=96) -> tuple[torch.Tensor, gguf.GGMLQuantizationType]:
    """Quantized weights with a constant block, an all-zero one and one with an outlier among them."""
    w = torch.randn(D_out, D_in, generator=torch.Generator().manual_seed(0)) * 0.05
    w[0, :32], w[1, :32], w[2, 5] = 0, 0.3, 40
    number = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.quants.quantize(w.numpy(), number)), number


@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_values_are_those_of_the_gguf_package_exactly(kind):
    rows, number = rows_of(kind)
    expected = torch.from_numpy(gguf.quants.dequantize(rows.numpy(), number))
    weight = BLOCK_TYPES[kind].quantized_weight(rows)
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(dense_rows(rows, kind, "x"), expected)
    assert torch.equal(QuantLinear.from_weight(weight).dequantize(), expected)
    if kind in ("Q4_0", "Q5_0"):
        assert (weight.grid.scale < 0).any()  # the sign of the largest weight


def test_any_bytes_at_all_dequantize_as_in_the_gguf_package():
    """Also codes that its quantizer never writes, as -128 in Q8_0."""
    for kind in KINDS:
        raw = numpy.random.default_rng(0).integers(0, 256, (64, 3 * BLOCK_TYPES[kind].bytes), dtype=numpy.uint8)
        raw[:, 1::BLOCK_TYPES[kind].bytes] &= 0xBF  # the float16 d is finite,
        if BLOCK_TYPES[kind].has_offset:
            raw[:, 3::BLOCK_TYPES[kind].bytes] &= 0xBF  # and m
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        weight = BLOCK_TYPES[kind].quantized_weight(torch.from_numpy(raw))
        assert torch.equal(weight.dequantize(), torch.from_numpy(expected)), kind


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_rounded_again(kind):
    """Scale, offset and codes give the file's bytes back."""
    rows, _ = rows_of(kind)
    weight = BLOCK_TYPES[kind].quantized_weight(rows)
    codes = weight.codes.unflatten(1, (-1, 32))
    stored = codes[..., :16] & 15 | codes[..., 16:] << 4
    if kind == "Q8_0":
        stored = (codes.int() - 128).to(torch.int8).view(torch.uint8)
    if kind.startswith("Q5"):
        high = numpy.packbits(codes.numpy() >> 4, axis=-1, bitorder="little")
        stored = torch.cat((torch.from_numpy(high), stored), dim=-1)
    factors = [weight.grid.scale] + ([weight.grid.offset] if kind.endswith("_1") else [])
    halves = [factor.contiguous().view(torch.uint8).unflatten(1, (-1, 2)) for factor in factors]
    assert torch.equal(torch.cat([*halves, stored], dim=-1).flatten(1), rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stated_shapes_and_bytes_are_those_of_the_layer(kind):
    rows, number = rows_of(kind)
    layer = QuantLinear.from_weight(BLOCK_TYPES[kind].quantized_weight(rows))
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == BLOCK_TYPES[kind].shapes(40, 96)
    assert BLOCK_TYPES[kind].bytes == gguf.GGML_QUANT_SIZES[number][1]


def test_the_examples_of_the_docstrings():
    assert codes_of_halves(torch.tensor([0x21, 0x43], dtype=torch.uint8)).tolist() == [1, 3, 2, 4]
    first_and_last = torch.tensor([1, 0, 0, 0x80, *[0] * 15, 0x21], dtype=torch.uint8)
    assert codes_of_bits_and_halves(first_and_last).tolist() == [16, *[0] * 14, 1, *[0] * 15, 18]
    assert codes_of_signed(torch.tensor([-128, 0, 127], dtype=torch.int8).view(torch.uint8)).tolist() == [0, 128, 255]


def test_the_comparison_notices_weights_in_another_order():
    rows, number = rows_of("Q4_1")
    weight = BLOCK_TYPES["Q4_1"].quantized_weight(rows)
    pairs = weight.codes.unflatten(1, (-1, 2, 16)).transpose(2, 3).flatten(1)  # both halves of a byte side by side
    wrong = type(weight)(pairs, weight.grid).dequantize()
    assert not torch.equal(wrong, torch.from_numpy(gguf.quants.dequantize(rows.numpy(), number)))


def test_m_of_a_scale_that_was_rounded_is_that_of_the_rounded_scale():
    """A merged PEQA has float32 scales and integer zeros: a weight at its zero stays 0, up to the rounding of m."""
    scale = 0.01 + random(8, 2, dtype=torch.float32).abs()
    zero = torch.arange(16).view(8, 2)
    codes = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    grid = Grid(torch.arange(16.0), scale, ZeroPoints.of(zero, 4), Block(32, 1), 4)
    d, m = in_file_blocks(QuantizedWeight(codes, grid), BLOCK_TYPES["Q4_1"]).grid.factors()
    assert torch.equal(d, scale.half())
    assert torch.equal(m, (-d.double() * zero).half())
    assert not torch.equal(m, (-scale.double() * zero).half())  # control: m of the scale before
