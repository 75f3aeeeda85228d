"""What each grid promises (Shen et al., Eq. 1)."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import QUANTIZERS
from quant.absmax import AbsMax
from quant.grid import Block, QuantizedWeight, join_blocks, per_block, round_to_grid, split_blocks
from quant.icq import ICQ
from quant.integer_minmax import IntegerMinMax
from quant.minmax import MinMax
from quant.normal_float import NormalFloat, normal_float_levels
from tests.strategies import bits, blocks, random, weights

PUBLISHED_NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                 -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                 0.7229568362236023, 1.0]
EVERY = [(kind, bits) for kind in QUANTIZERS.values() for bits in kind.allowed_bits]


def element_scale(quantized):
    """scale of each weight's block, (D_out, D_in)."""
    grid, codes = quantized.grid, quantized.codes
    return join_blocks(per_block(grid.factors()[0].double()).expand_as(split_blocks(codes.double(), grid.block)))


@given(st.data(), bits, blocks)
def test_minmax_error_is_at_most_half_a_step(data, bits, block):
    weight = data.draw(weights(block))
    quantized = MinMax(bits, block, storage=torch.float64).quantize(weight)
    error = (quantized.dequantize(torch.float64) - weight).abs()
    assert (error <= element_scale(quantized) / 2 + 1e-12 * weight.abs().max()).all()


@given(st.data(), bits, blocks)
def test_minmax_in_float16_errs_by_half_a_step_and_the_rounding_of_its_two_factors(data, bits, block):
    weight = data.draw(weights(block, torch.float32))
    exact = MinMax(bits, block, storage=torch.float64).quantize(weight)
    stored = MinMax(bits, block).quantize(weight)
    moved = (2 ** bits - 1) * (stored.grid.scale.double() - exact.grid.scale).abs() \
        + (stored.grid.offset.double() - exact.grid.offset).abs()
    bound = element_scale(stored) / 2 + join_blocks(per_block(moved).expand_as(split_blocks(weight, block)))
    error = (stored.dequantize(torch.float64) - weight.double()).abs()
    assert (error <= bound + 1e-6 * weight.abs().max() + 1e-44).all()  # 1e-44: seven of the smallest float32


@given(st.data(), bits, blocks)
def test_absmax_error_is_at_most_half_a_step_and_zero_stays_zero(data, bits, block):
    weight = data.draw(weights(block))
    weight[0, 0] = 0
    quantized = AbsMax(bits, block, storage=torch.float64).quantize(weight)
    restored = quantized.dequantize(torch.float64)
    assert ((restored - weight).abs() <= element_scale(quantized) / 2 + 1e-12 * weight.abs().max()).all()
    assert restored[0, 0] == 0


@given(st.data(), st.sampled_from([2, 3, 4]), blocks)
def test_normal_float_picks_the_nearest_level(data, bits, block):
    weight = data.draw(weights(block))
    quantized = NormalFloat(bits, block, storage=torch.float64).quantize(weight)
    levels, scale = normal_float_levels(bits).double(), element_scale(quantized)
    best = (weight[..., None] - scale[..., None] * levels).abs().min(-1).values
    assert ((quantized.dequantize(torch.float64) - weight).abs() <= best + 1e-7 * scale + 1e-40).all()


@pytest.mark.parametrize("kind,bits", EVERY)
def test_an_all_zero_block_comes_back_exactly(kind, bits):
    weight = random(16, 8, dtype=torch.float32)
    weight[:8, :4] = 0
    assert torch.equal(kind(bits, Block(4, 8)).quantize(weight).dequantize()[:8, :4], weight[:8, :4])


@pytest.mark.parametrize("kind,bits", EVERY)
@pytest.mark.parametrize("value", [0.25, -3.0])
def test_a_constant_block_comes_back_as_exactly_as_its_scale_is_stored(kind, bits, value):
    """Exactly, but for absmax: max|w| / (2^(N-1) - 1) is seldom a float16 number, and the block is that times the
    level."""
    restored = kind(bits, Block(4, 8)).quantize(torch.full((8, 8), value)).dequantize()
    assert (restored - value).abs().max() <= (abs(value) * 2 ** -11 if kind is AbsMax else 0)


@given(st.floats(-60000, 60000, width=16), bits)
def test_minmax_returns_every_float16_constant_exactly(value, bits):
    weight = torch.full((4, 4), value)
    assert torch.equal(MinMax(bits, Block(4, 4)).quantize(weight).dequantize(), weight)


@given(st.floats(-2.0 ** 99, 2.0 ** 99, width=32), bits)
def test_minmax_with_float32_storage_returns_every_float32_constant_exactly(value, bits):
    weight = torch.full((4, 4), value)
    assert torch.equal(MinMax(bits, Block(4, 4), storage=torch.float32).quantize(weight).dequantize(), weight)


@pytest.mark.parametrize("kind,bits", [(kind, bits) for kind, bits in EVERY if kind not in (IntegerMinMax, ICQ)])
def test_the_largest_weight_of_a_symmetric_block_is_kept(kind, bits):
    """Two grids do not promise it: integer min-max rounds its zero point, which moves the ends of a symmetric range by
    half a step; ICQ puts its offset where codes carry the most information, and only the weight furthest from there is
    on a level."""
    weight = torch.tensor([[-1.0, 0.3, 0.2, 1.0]])
    restored = kind(bits, Block(4, 1)).quantize(weight).dequantize()
    assert restored[0, 3] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("bits", IntegerMinMax.allowed_bits)
def test_integer_minmax_moves_the_ends_of_a_symmetric_block_by_half_a_step(bits):
    quantized = IntegerMinMax(bits, Block(4, 1)).quantize(torch.tensor([[-1.0, 0.3, 0.2, 1.0]]))
    restored, step = quantized.dequantize(), quantized.grid.scale.item()
    assert [abs(restored[0, i].abs().item() - 1) for i in (0, 3)] == pytest.approx([step / 2] * 2, abs=2e-3)


@pytest.mark.parametrize("kind,bits", [(kind, bits) for kind, bits in EVERY if kind is not ICQ])
def test_quantizing_the_dequantized_weight_changes_nothing(kind, bits):
    """Where the fit sees nothing but each block's ends, and finds them on the grid; so codes are a fixed point.

    ICQ is an exception: its search starts from the median, which rounding moves."""
    first = kind(bits, Block(8, 4), storage=torch.float64).quantize(random(16, 32))
    again = kind(bits, Block(8, 4), storage=torch.float64).quantize(first.dequantize(torch.float64))
    assert (again.dequantize(torch.float64) - first.dequantize(torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize("kind", QUANTIZERS.values())
def test_more_bits_never_make_the_error_larger(kind):
    weight = random(64, 64)
    errors = [(kind(bits, Block(8, 4)).quantize(weight).dequantize(torch.float64) - weight).norm()
              for bits in kind.allowed_bits]
    assert errors == sorted(errors, reverse=True)


def test_scale_and_offset_are_rounded_before_codes_are_chosen():
    """With codes chosen on the unrounded grid, the error would be larger: the control below shows it."""
    weight = (random(64, 64) * 1e-3 + 0.5).float()
    quantizer = MinMax(4, Block(4, 8))
    quantized = quantizer.quantize(weight)
    early = MinMax(4, Block(4, 8), storage=torch.float64).fit(weight)
    late = QuantizedWeight(round_to_grid(weight, early),
                           replace(early, scale=early.scale.half(), offset=early.offset.half()))
    assert (quantized.dequantize() - weight).norm() < 0.9 * (late.dequantize() - weight).norm()


def test_derived_normal_float_levels_equal_the_published_table():
    assert torch.equal(normal_float_levels(4), torch.tensor(PUBLISHED_NF4))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_normal_float_levels_ascend_from_minus_one_to_one_through_an_exact_zero(bits):
    levels = normal_float_levels(bits)
    assert len(levels) == 2 ** bits and (levels.diff() > 0).all()
    assert levels[0] == -1 and levels[-1] == 1 and levels[2 ** (bits - 1) - 1] == 0


def test_a_tie_goes_to_the_lower_code():
    weight = torch.tensor([[0.0, 0.5, 1.5, 3.0]])  # step 1, so 0.5 and 1.5 lie half-way
    assert MinMax(2, Block(4, 1)).quantize(weight).codes.tolist() == [[0, 0, 1, 3]]


def test_blocks_span_inputs_by_outputs_in_that_order():
    """One block of 2 inputs x 1 output differs from one of 1 input x 2 outputs."""
    weight = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert MinMax(4, Block(2, 1)).fit(weight).offset.tolist() == [[0.0], [1.0]]
    assert MinMax(4, Block(1, 2)).fit(weight).offset.tolist() == [[0.0, 0.0]]


def test_absmax_needs_no_more_than_n_bits_unlike_the_papers_scale():
    """Erratum 1: with scale = absmax / (2^N - 1), codes of signed weights run from -(2^N - 1) to 2^N - 1."""
    weight = torch.linspace(-1, 1, 64)[None]
    assert AbsMax(4, Block(64, 1)).quantize(weight).codes.max() < 2 ** 4
    paper = torch.round(weight / (weight.abs().max() / (2 ** 4 - 1)))
    assert paper.max() - paper.min() + 1 > 2 ** 4


@pytest.mark.parametrize("kind", QUANTIZERS.values())
def test_a_block_that_does_not_divide_the_layer_is_named_with_the_sizes(kind):
    with pytest.raises(ValueError, match="block 8x4 .* layer q_proj with D_in=12, D_out=8"):
        kind(4, Block(8, 4)).fit(torch.zeros(8, 12), "q_proj")


def test_weights_beyond_float16_are_refused_with_the_layer():
    with pytest.raises(ValueError, match="layer up_proj.*cannot hold"):
        MinMax(4, Block(4, 1)).fit(torch.tensor([[0.0, 1e6, 0, 0]]), "up_proj")


@pytest.mark.parametrize("kind", QUANTIZERS.values())
def test_a_weight_that_is_not_finite_is_refused(kind):
    with pytest.raises(ValueError, match="layer down_proj"):
        kind(4, Block(4, 1)).fit(torch.tensor([[0.0, float("nan"), 0, 0]]), "down_proj")


def test_normal_float_of_eight_bits_is_refused():
    with pytest.raises(ValueError, match="bits=8 is not possible with quantizer nf; allowed: 2, 3, 4"):
        NormalFloat(8, Block(64, 1))


@pytest.mark.parametrize("text", ["4", "4x", "x8", "0x8", "4x8x2", "ax8", "-4x8", "²x8"])
def test_a_malformed_block_is_refused(text):
    with pytest.raises(ValueError, match="n_in x n_out"):
        Block.parse(text)


@pytest.mark.parametrize("bits", MinMax.allowed_bits)
def test_an_offset_beyond_float16_is_refused_though_its_scale_is_not(bits):
    weight = 70_000 + random(8, 8, dtype=torch.float32).abs()
    assert (weight.max() - weight.min()) / 3 < 65_504 < weight.min()
    with pytest.raises(ValueError, match="layer here: weights between .* that torch.float16 cannot hold"):
        MinMax(bits, Block(4, 8)).fit(weight, "here")
