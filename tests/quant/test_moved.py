"""Codes moved by a change of the weights are those of rounding the changed weights; no change moves none."""
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import QUANTIZERS
from quant.grid import Block, dequantize, round_to_grid
from quant.linear import QuantLinear
from quant.moved import MARGIN, cells, clipped, positions, residual_of, rounded, spread
from tests.strategies import blocks, random, seeds, weights

GRIDS = [(name, bits, double) for name, kind in QUANTIZERS.items() for bits in kind.allowed_bits
         for double in ((False, True) if name in ("nf", "icq") else (False,))]


def moved(layer, delta, residual=None):
    return rounded(positions(layer, delta, residual), layer.grid).codes


def in_the_middle(layer):
    """The residual of W_hat itself."""
    return torch.zeros(layer.out_features, layer.in_features)


def quantized(grid, block, weight, storage=None):
    name, bits, double = grid
    return QUANTIZERS[name](bits, block, storage or QUANTIZERS[name].usual_storage, double).quantize(weight)


@given(st.data(), st.sampled_from(GRIDS), blocks, st.sampled_from([torch.float32, torch.float64]))
def test_no_change_moves_no_code(data, grid, block, dtype):
    """On every grid and width, with constant, zero, subnormal and outlier blocks, as the grid is stored."""
    weight = quantized(grid, block, data.draw(weights(block, torch.float32)))
    assert torch.equal(moved(QuantLinear.from_weight(weight), torch.zeros(weight.codes.shape, dtype=dtype)),
                       weight.codes)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_change_moves_no_code_of_any_value(grid):
    """Each code of the grid, as GPTQ chooses them: scales of every size, negative ones and 0 too."""
    weight = quantized(grid, Block(8, 2), random(32, 64, dtype=torch.float32))
    codes = torch.arange(32 * 64).view(32, 64).remainder(len(weight.grid.levels)).to(torch.uint8)
    for factor in (1.0, 1e-6, 1e30, -1.0, 0.0):
        scale, offset = (f.float() for f in weight.grid.factors())
        grid_of = replace(weight.grid, scale=scale * factor, offset=offset)
        layer = QuantLinear.from_weight(replace(weight, codes=codes, grid=grid_of))
        assert torch.equal(moved(layer, torch.zeros(32, 64)), codes), factor


@given(st.data(), st.sampled_from(GRIDS), blocks)
def test_the_residual_of_the_original_weights_moves_no_code(data, grid, block):
    original = data.draw(weights(block, torch.float32))
    weight = quantized(grid, block, original)
    residual, levels = residual_of(original, weight), weight.grid.levels[weight.codes.int()]
    assert residual.dtype == torch.float16 and residual.isfinite().all()
    assert torch.equal(rounded(levels + residual, weight.grid).codes, weight.codes)
    assert torch.equal(rounded(positions(QuantLinear.from_weight(weight), torch.zeros(original.shape), residual),
                               weight.grid).codes, weight.codes)
    assert not clipped(levels + residual, weight.grid)[per_weight_scale(weight) > 1e-30].any()


def per_weight_scale(weight):
    scale, _ = weight.grid.factors()
    return scale.repeat_interleave(weight.grid.block.n_out, 0).repeat_interleave(weight.grid.block.n_in, 1)


def test_the_residual_is_what_quantizing_took():
    """Control: it makes W_hat W again, but for the rounding of 11 bits of a step."""
    original = random(16, 64, seed=3, dtype=torch.float32)
    for grid in GRIDS:
        weight = quantized(grid, Block(16, 1), original)
        error, step = original - weight.dequantize(), per_weight_scale(weight)
        again = (original - weight.dequantize() - residual_of(original, weight) * step).abs()
        assert again.max() < 2e-3 * error.abs().max(), grid


def test_rounding_the_dequantized_weight_would_move_codes():
    """Control: a small scale beside a large offset is lost in W_hat, and so is the code."""
    weight = quantized(("minmax", 4, False), Block(16, 1), 1000 + 1e-4 * random(4, 16), torch.float64)
    assert len(weight.codes.unique()) > 8
    layer = QuantLinear.from_weight(weight)
    assert not torch.equal(round_to_grid(weight.dequantize(torch.float32), weight.grid), weight.codes)
    assert torch.equal(moved(layer, torch.zeros(4, 16)), weight.codes)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("block", [Block(8, 2), Block(16, 1), Block(None, 1)], ids=str)
def test_moved_codes_are_those_of_the_rounded_sum(grid, block):
    weight = quantized(grid, block, random(16, 64, seed=3), torch.float64)
    layer, delta = QuantLinear.from_weight(weight), 0.8 * random(16, 64, seed=4)
    for residual in (in_the_middle(layer), positions(layer, 0 * delta) - weight.grid.levels[weight.codes.int()]):
        codes = moved(layer, delta, residual)
        W_ref = dequantize(weight.codes, weight.grid, torch.float64) + residual * per_weight_scale(weight)
        assert torch.equal(codes, round_to_grid(W_ref + delta, weight.grid))
        assert (codes != weight.codes).float().mean() > 0.05
        assert not torch.equal(codes, moved(layer, -delta, residual))  # control
    assert torch.equal(codes, moved(layer, delta))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_small_change_moves_a_small_share_of_the_codes(grid):
    """Control: from the middle of their cells, it moves none."""
    weight = quantized(grid, Block(16, 1), random(64, 64, seed=3), torch.float64)
    layer, step = QuantLinear.from_weight(weight), per_weight_scale(weight)
    levels = weight.grid.levels.double()
    inner = (weight.codes > 0) & (weight.codes < len(levels) - 1)
    low, high = cells(levels)
    for share in (0.1, 0.3):
        change = share * (high - low)[weight.codes.int()] * step
        up, down = (moved(layer, sign * change) != weight.codes for sign in (1, -1))
        assert up[inner].double().mean() == pytest.approx(share - MARGIN, abs=0.04)
        assert down[inner].double().mean() == pytest.approx(share - MARGIN, abs=0.04) and not (up & down).any()
        assert not (moved(layer, change, in_the_middle(layer)) != weight.codes)[inner].any() or grid[0] in ("nf", "icq")


def test_where_weights_begin_is_as_good_as_random():
    """Control: the sum of the same numbers has a singular value several times as large, along which a change of low
    rank would move many codes at once."""
    layer = QuantLinear.from_weight(quantized(("minmax", 4, False), Block(16, 1), random(96, 160), torch.float32))
    found = spread(layer)
    i, j = numpy.mgrid[:96, :160]
    a, b = 1024 + 15360 * (i * 0.7548776662466927 % 1), 1 + j * 0.5698402909980532 % 1
    product = a.astype(numpy.float32) * b.astype(numpy.float32)
    expected = MARGIN + (1 - 2 * MARGIN) * (product % 1)
    assert numpy.abs(found.numpy() - expected).max() < 1e-6
    even = numpy.linspace(MARGIN, 1 - MARGIN, found.numel())
    assert numpy.abs(numpy.sort(found.flatten().numpy()) - even).max() < 0.02

    def largest(values):
        return numpy.linalg.norm(values - values.mean(), 2) / values.std()
    drawn = largest(random(96, 160, seed=1).numpy())
    assert largest(found.numpy()) < 1.2 * drawn < 3 * drawn < largest((a / 15360 + b) % 1)


@given(seeds, st.sampled_from(GRIDS))
def test_what_is_clipped_would_round_to_a_level_beyond_the_ends(seed, grid):
    """Of a grid with one more level at each end, as far away as its neighbour."""
    weight = quantized(grid, Block(8, 2), random(16, 32, seed=seed), torch.float64)
    position, levels = 1.5 * weight.grid.levels.abs().max() * random(16, 32, seed=seed + 1), weight.grid.levels.double()
    longer = torch.cat((2 * levels[:1] - levels[1:2], levels, 2 * levels[-1:] - levels[-2:-1]))
    nearest = (position[..., None] - longer).abs().argmin(-1)
    found = clipped(position, weight.grid)
    assert torch.equal(found, (nearest == 0) | (nearest == len(levels) + 1))
    assert found.any() and not found.all()


def test_a_block_of_scale_0_is_clipped_as_a_whole():
    weight = quantized(("minmax", 4, False), Block(8, 2), torch.cat((torch.full((2, 8), 0.5), random(2, 8))).float())
    found = clipped(positions(QuantLinear.from_weight(weight), torch.zeros(4, 8)), weight.grid)
    assert found[:2].all() and not found[2:].any()
