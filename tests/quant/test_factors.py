"""Scales and offsets that are kept in fewer bits: double quantization, and integer zero points."""
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import QUANTIZERS
from quant.factors import DoubleQuantized, ZeroPoints, dynamic_map
from quant.grid import (
    Block,
    Grid,
    QuantizedWeight,
    join_blocks,
    per_block,
    round_to_grid,
    split_blocks,
)
from quant.icq import ICQ
from quant.integer_minmax import IntegerMinMax
from quant.linear import QuantLinear, stored_bytes
from quant.normal_float import NormalFloat
from tests.strategies import bits, blocks, random, seeds, weights

WIDEST_HALF_GAP = 0.9 / 128  # of the dynamic map: between its lowest value and -1, which it does not hold


def test_the_dynamic_map_is_the_means_of_neighbours_by_decade():
    """For i in 0..6 the means of neighbours of linspace(.1, 1, 2^i + 1) times 10^(i - 6), both signs, plus 0 and 1."""
    expected = [0.0, 1.0]
    for i in range(7):
        ends = [0.1 + 0.9 * j / 2 ** i for j in range(2 ** i + 1)]
        for low, high in itertools.pairwise(ends):
            expected += [(low + high) / 2 * 10 ** (i - 6), -(low + high) / 2 * 10 ** (i - 6)]
    values = dynamic_map()
    torch.testing.assert_close(values.double(), torch.tensor(sorted(expected), dtype=torch.float64), rtol=0, atol=1e-7)
    assert len(values) == 256 and values.dtype == torch.float32 and (values.diff() > 0).all()
    assert values[127] == 0 and values[-1] == 1 and -1 < values[0] == -values[-2]


@given(st.integers(1, 1100), seeds, st.sampled_from([1e-4, 1.0, 300.0]))
def test_double_quantization_takes_the_nearest_value_of_the_map_and_errs_by_half_a_gap(n, seed, size):
    """Counts that are no multiple of 256 are in this: the last block is then shorter."""
    factor = size * random(n, seed=seed, dtype=torch.float32).abs()
    kept = DoubleQuantized.of(factor)
    assert kept.codes.shape == (n,) and kept.absmax.shape == (-(-n // 256),) and kept.mean.shape == (1,)
    centred = (factor.double() - kept.mean.double()).split(256)
    restored_blocks = (kept().double() - kept.mean.double()).split(256)
    for block, restored, absmax in zip(centred, restored_blocks, kept.absmax.double(), strict=True):
        assert absmax.item() == pytest.approx(block.abs().max().item(), rel=1e-5)
        nearest = (block[:, None] - absmax * dynamic_map().double()).abs().amin(1)
        assert ((restored - block).abs() <= nearest + 1e-6 * size * 4).all()
        assert ((restored - block).abs() <= WIDEST_HALF_GAP * absmax + 1e-6 * size * 4).all()


def test_blocks_of_factors_run_along_rows_and_keep_their_shape():
    factor = torch.cat((torch.linspace(1, 2, 256), torch.linspace(100, 200, 256))).view(2, 256)
    kept = DoubleQuantized.of(factor)
    assert kept().shape == factor.shape and kept.codes.dtype == torch.uint8
    assert ((kept() - factor).abs().amax(1) <= WIDEST_HALF_GAP * kept.absmax + 1e-4).all()
    assert kept.absmax[0] < kept.absmax[1]  # else the two bounds would be one


@given(st.floats(2.0 ** -14, 60000, width=16), st.integers(1, 600))
def test_a_constant_factor_comes_back_exactly(value, n):
    factor = torch.full((n,), value)
    assert torch.equal(DoubleQuantized.of(factor)(), factor)


@pytest.mark.parametrize("value", [0.1, 0.0371])
@pytest.mark.parametrize("n", [255, 300, 4097])
def test_a_constant_factor_that_is_no_short_number_comes_back_up_to_the_rounding_of_its_mean(value, n):
    factor = torch.full((n,), value)
    assert (DoubleQuantized.of(factor)() - factor).abs().max() <= 1e-6 * value


@pytest.mark.parametrize("kind", [NormalFloat, ICQ])
def test_an_all_zero_block_of_a_double_quantized_layer_comes_back_as_exactly_as_its_offset(kind):
    """Its scale is no longer 0, but 0 is a level."""
    weight = random(64, 64, dtype=torch.float32)
    weight[:2, :32] = 0
    quantized = kind(4, Block(32, 2), double_quant=True).quantize(weight)
    scale, offset = quantized.grid.factors()
    assert torch.equal(quantized.dequantize()[:2, :32], offset[0, 0].expand(2, 32))
    bound = 0 if kind is NormalFloat else WIDEST_HALF_GAP * quantized.grid.offset.absmax[0]
    assert offset[0, 0].abs() <= bound


def test_nf4_with_double_quantization_takes_4_127_bits_a_weight():
    D_out, D_in = 1024, 4096
    weight = random(D_out, D_in, dtype=torch.float32)
    layer = QuantLinear.from_weight(NormalFloat(4, Block(64, 1), double_quant=True).quantize(weight))
    levels_mean_and_zero_offset = 4 * (16 + 1 + 1)
    stored = 8 * (stored_bytes([layer]) - levels_mean_and_zero_offset) / (D_out * D_in)
    assert stored == 4 + 8 / 64 + 32 / (64 * 256)
    assert round(stored, 3) == 4.127
    assert {name for name, _ in layer.named_buffers()} == {"codes", "levels", "offset",
                                                           "scale.codes", "scale.absmax", "scale.mean"}


@pytest.mark.parametrize("kind,bits", [(kind, bits) for kind in (NormalFloat, ICQ) for bits in kind.allowed_bits])
def test_codes_are_chosen_after_the_scale_was_double_quantized(kind, bits):
    """The control, codes of the unrounded scale on the grid that is kept, has other codes and the larger error."""
    weight = random(256, 256, dtype=torch.float32)
    quantized = kind(bits, Block(64, 1), double_quant=True).quantize(weight)
    assert torch.equal(quantized.codes, round_to_grid(weight, quantized.grid))
    early = QuantizedWeight(kind(bits, Block(64, 1)).quantize(weight).codes, quantized.grid)
    assert (early.codes != quantized.codes).any()
    assert (quantized.dequantize() - weight).norm() < (early.dequantize() - weight).norm()


@pytest.mark.parametrize("kind", [NormalFloat, ICQ])
def test_a_double_quantized_layer_survives_a_state_dict(kind):
    quantizer = kind(4, Block(64, 1), double_quant=True)
    first, other = (QuantLinear.from_weight(quantizer.quantize(random(8, 128, seed=seed))) for seed in (0, 1))
    assert (first.dequantize() != other.dequantize()).any()
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.dequantize(), other.dequantize())


@pytest.mark.parametrize("name", ["minmax", "intminmax", "absmax"])
def test_double_quantization_of_factors_that_are_not_float32_is_refused(name):
    with pytest.raises(ValueError, match=f"double quantization is for factors in float32, which quantizer "
                                         f"{name} does not keep: use nf or icq"):
        QUANTIZERS[name](4, Block(64, 1), double_quant=True)


@given(bits, st.integers(1, 9), st.integers(1, 9), seeds)
def test_zero_points_are_integers_and_make_offsets_without_rounding(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    zero = torch.randint(0, 2 ** bits, (rows, columns), generator=generator)
    scale = torch.randn(rows, columns, generator=generator).half()
    kept = ZeroPoints.of(zero, bits)
    assert torch.equal(kept.integers(zero.shape).long(), zero) and kept.zero.dtype == torch.uint8
    assert len(kept.zero) <= -(-bits * rows * columns // 8) + 4  # packed: up to whole words
    assert kept(scale).dtype == torch.float32
    assert torch.equal(kept(scale).double(), -scale.double() * zero.double())


def element_of(factor, weight, block):
    """The factor of each weight's block, (D_out, D_in), float64."""
    return join_blocks(per_block(factor.double()).expand_as(split_blocks(weight, block)))


@given(st.data(), bits, blocks)
def test_zero_weights_come_back_as_exact_zeros_from_integer_minmax(data, bits, block):
    weight = data.draw(weights(block, torch.float32))
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    weight[zeros] = 0
    quantized = IntegerMinMax(bits, block).quantize(weight)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert (quantized.dequantize(dtype)[zeros] == 0).all()


@given(st.data(), bits, blocks)
def test_integer_minmax_error_is_at_most_half_a_step(data, bits, block):
    """Rounding the zero point moves both ends of the levels the same way, by half a step at most, so that no weight of
    the range is further than that from a level. With float16 scales the levels' span also changes, by 2^N - 1 roundings
    of the scale."""
    weight = data.draw(weights(block, torch.float32))
    exact = IntegerMinMax(bits, block, storage=torch.float64).fit(weight.double()).scale
    for storage in (torch.float64, torch.float16):
        quantized = IntegerMinMax(bits, block, storage=storage).quantize(weight.double())
        moved = (2 ** bits - 1) * (quantized.grid.scale.double() - exact).abs()
        bound = element_of(quantized.grid.scale / 2 + moved, weight, block)
        error = (quantized.dequantize(torch.float64) - weight.double()).abs()
        assert (error <= bound + 1e-12 * weight.abs().max()).all()


def test_integer_minmax_zero_is_rounded_unlike_minmax_offset():
    """-1 .. 2 has its four levels there; 0.9 .. 3 is widened to 0 .. 3; and -0.4 .. 2.6 gets 0 .. 3."""
    for weight, scale, offset in (([-1.0, 0.5, 2.0], 1, -1), ([0.9, 1.0, 3.0], 1, 0), ([-0.4, 0.0, 2.6], 1, 0)):
        grid = IntegerMinMax(2, Block(3, 1)).fit(torch.tensor([weight]))
        assert [f.item() for f in grid.factors()] == [scale, offset]


@given(st.floats(-65504, 65504, width=16), bits)
def test_integer_minmax_returns_every_float16_constant_exactly(value, bits):
    weight = torch.full((4, 4), value)
    assert torch.equal(IntegerMinMax(bits, Block(4, 4)).quantize(weight).dequantize(), weight)


@given(st.floats(-60000, 60000, width=32), bits)
def test_integer_minmax_returns_a_constant_as_the_nearest_float16_number(value, bits):
    weight = torch.full((4, 4), value)
    assert torch.equal(IntegerMinMax(bits, Block(4, 4)).quantize(weight).dequantize(), weight.half().float())


def test_a_grid_gives_its_factors_plainly_however_they_are_kept():
    scale, offset = (random(2, 3, seed=seed, dtype=torch.float32).abs() for seed in (0, 1))
    zero = torch.ones(2, 3)
    kept, kept_offset, zeros = DoubleQuantized.of(scale), DoubleQuantized.of(offset), ZeroPoints.of(zero, 4)
    for factors, expected in (((scale, offset), (scale, offset)), ((kept, kept_offset), (kept(), kept_offset())),
                              ((scale, zeros), (scale, -scale))):
        assert all(map(torch.equal, Grid(torch.arange(16.0), *factors, Block(4, 1), 4).factors(), expected))


def test_the_zero_point_is_that_of_the_stored_scale():
    """z = round(-min / scale) with the float16 scale: the float32 scale rounds some to a neighbour."""
    weight = random(64, 64, dtype=torch.float32) * 3e-5  # float16 is coarse there
    grid = IntegerMinMax(8, Block(32, 1)).fit(weight)
    low, high = (f(weight.unflatten(1, (-1, 32)), dim=2) for f in (torch.amin, torch.amax))
    exact = (high - low) / 255
    zeros = grid.offset.integers(grid.scale.shape)
    assert torch.equal(zeros, (-low / grid.scale.float()).round().clamp(0, 255).to(torch.uint8))
    assert not torch.equal(zeros, (-low / exact).round().clamp(0, 255).to(torch.uint8))  # control
