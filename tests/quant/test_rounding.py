"""Fast rounding and fitting give the codes and factors of the plain functions, ties included."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quant.rounding
from quant import QUANTIZERS
from quant.grid import Block, Grid, round_to_grid, split_blocks
from quant.quantizer import block_absmax, block_ends
from quant.rounding import round_rows
from tests.strategies import seeds, weights

EVERY = [(kind, bits) for kind in QUANTIZERS.values() for bits in kind.allowed_bits]
blocks = st.builds(Block, st.sampled_from([1, 3, 4, 16, 32, None]), st.sampled_from([1, 2, 3, 8]))
dtypes = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])
portions = st.sampled_from([1, 100, 1 << 16])


def near_ties(levels):
    """(n,) float32: the midpoints, their neighbours among the float32 numbers, the levels, and values far outside."""
    middle = ((levels[1:] + levels[:-1]) / 2).float()
    inf = torch.full_like(middle, float("inf"))
    return torch.cat((middle, middle.nextafter(inf), middle.nextafter(-inf), levels.float(), 1e9 * levels.float()))


@pytest.mark.parametrize("kind,bits", EVERY)
def test_a_tie_and_its_neighbours_get_the_codes_of_a_search_among_midpoints(kind, bits):
    """Scale 1: the weights are positions among the levels, and nothing is rounded before."""
    levels = kind(bits, Block(1, 1)).fit(torch.ones(1, 1)).levels
    weight = near_ties(levels)[None]
    grid = Grid(levels, torch.ones(1, 1), torch.zeros(1, 1), Block(weight.shape[1], 1), bits)
    assert torch.equal(round_rows(weight, grid), round_to_grid(weight, grid))
    assert len(round_rows(weight, grid).unique()) == len(levels)


@given(st.data(), st.sampled_from(EVERY), blocks, st.booleans(), dtypes, portions)
def test_every_grid_rounds_to_the_codes_of_the_plain_function(data, kind_and_bits, block, double, dtype, portion):
    kind, bits = kind_and_bits
    weight = data.draw(weights(Block(block.n_in or 24, block.n_out), dtype))
    quantizer = kind(bits, block, double_quant=double and kind.usual_storage == torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant.rounding, "AT_A_TIME", portion)
        quantized = quantizer.quantize(weight)
        assert torch.equal(quantized.codes, round_to_grid(weight, quantized.grid))
        half_way = quantized.dequantize(torch.float64)  # whole steps and halves of the grid: many ties
        half_way = ((half_way + half_way.roll(1, 1)) / 2).to(dtype)
        assert torch.equal(round_rows(half_way, quantized.grid), round_to_grid(half_way, quantized.grid))


@given(blocks, st.integers(1, 4), st.integers(1, 4), st.booleans(), seeds)
def test_the_ends_of_blocks_are_those_of_a_reduction_over_both_dimensions(block, rows, columns, part, seed):
    block = block.in_layer(24)
    weight = torch.randn(rows * block.n_out, columns * block.n_in + 5, generator=torch.Generator().manual_seed(seed))
    split = split_blocks(weight[:, 5:] if part else weight[:, 5:].contiguous(), block)
    assert [end.tolist() for end in block_ends(split)] == [split.amin((1, 3)).tolist(), split.amax((1, 3)).tolist()]
    assert torch.equal(block_absmax(split), split.abs().amax((1, 3)))
