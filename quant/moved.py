"""Codes that a change of the weights moves, on the grid that they have.

    position = levels[codes] + residual + delta_W / scale          codes = the nearest level's; a tie goes to the lower

These are the codes of `round_to_grid(W_ref + delta_W)`, since (W_ref - offset) / scale = levels[codes] + residual. The
offset is never added and taken off again. The residual stays inside its code's cell, so a change of 0 leaves every
code, whatever the scale. In a block of scale 0, or of one so small that 1 / scale overflows, no code moves.

| W_ref | residual | memory |
|---|---|---|
| the original weights | (W - W_hat) / scale, cut at the ends of the cell (`residual_of`) | 16 bits a weight |
| any weights that round to these codes | as if drawn at random from the cell (`spread`) | none |

With W_hat itself, the residual would be 0: every weight in the middle of its cell. A small change would move no code,
and a somewhat larger one many at once.
"""
from dataclasses import replace

import torch
from torch import Tensor

from quant.grid import (
    SHORT,
    Grid,
    QuantizedWeight,
    dequantize_packed,
    inverse_of,
    join_blocks,
    normalise,
    per_block,
    per_input,
    split_blocks,
)
from quant.linear import QuantLinear
from quant.rounding import AT_A_TIME, nearest

PLASTIC = 1.324717957244746  # p^3 = p + 1; multiples of 1/p and 1/p^2 fill [0, 1) evenly (Roberts 2018, R2)
MARGIN = 0.02                # of a cell, at both of its ends: no rounding of the sum leaves the cell


@torch.no_grad()
def positions(layer: QuantLinear, delta: Tensor, residual: Tensor | None = None) -> Tensor:
    """levels[codes] + residual + delta_W / scale, (D_out, D_in), in the wider of float32 and the type of delta_W. None:
    the residual of `spread`."""
    wide, (n_in, n_out) = torch.promote_types(delta.dtype, torch.float32), layer.block_size
    scale, _ = layer.grid.factors()
    one, zero = torch.ones_like(scale, dtype=wide), scale.new_zeros(1, 1, dtype=wide)

    def of_codes(values: Tensor) -> Tensor:
        grid = replace(layer.grid, levels=values, scale=one, offset=zero)
        return dequantize_packed(layer.codes, layer.bits, (layer.out_features, layer.in_features), grid, wide)
    if residual is None:
        low, high = cells(layer.levels.to(wide))
        found = of_codes(low).addcmul_(of_codes(high - low), spread(layer))
    else:
        found = of_codes(layer.levels).add_(residual)
    inverse = inverse_of(scale.to(wide))
    within, factor = ((-1, n_in), per_block(inverse)) if n_in >= SHORT else ((-1,), per_input(inverse, n_in))
    blocks, change = (t.unflatten(1, within).unflatten(0, (-1, n_out)) for t in (found, delta.to(wide)))
    blocks.addcmul_(change, factor)
    return found


def cells(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of the values that round to each level. The outermost levels are the ends of the grid."""
    midpoints = (levels[1:] + levels[:-1]) / 2
    return torch.cat((levels[:1], midpoints)), torch.cat((midpoints, levels[-1:]))


def spread(layer: QuantLinear) -> Tensor:
    """Numbers in [MARGIN, 1 - MARGIN), (D_out, D_in), float32, as good as drawn at random: frac(a_i * b_j) for output i
    and input j, 2^10 <= a < 2^14, 1 <= b < 2.

    They are the same on every device: one float32 product each. Their singular values are those of white noise, so a
    delta_W of low rank does not line up with them. (frac(a_i + b_j) is of low rank itself.)"""
    a, b = (torch.arange(n, dtype=torch.float64, device=layer.codes.device).mul_(step).frac_()
            for n, step in ((layer.out_features, 1 / PLASTIC), (layer.in_features, PLASTIC ** -2)))
    a, b = (a * (2 ** 14 - 2 ** 10) + 2 ** 10).float(), (b + 1).float()
    return (a[:, None] * b).frac_().mul_(1 - 2 * MARGIN).add_(MARGIN)


@torch.no_grad()
def rounded(position: Tensor, grid: Grid) -> QuantizedWeight:
    """The weight of the nearest levels, scale and offset as they were."""
    levels = grid.levels.to(position.dtype)
    if not position.is_cpu:
        midpoints = (levels[1:] + levels[:-1]) / 2
        return QuantizedWeight(torch.bucketize(position, midpoints, out_int32=True).to(torch.uint8), grid)
    codes = torch.empty(position.shape, dtype=torch.uint8)
    rows = max(1, AT_A_TIME * torch.get_num_threads() // position.shape[1])
    for part, out in zip(position.split(rows), codes.split(rows), strict=True):
        out.copy_(nearest(part.clone(), levels))
    return QuantizedWeight(codes, grid)


@torch.no_grad()
def residual_of(weight: Tensor, quantized: QuantizedWeight) -> Tensor:
    """(W - W_hat) / scale, float16, (D_out, D_in): at least 11 bits of a step between two levels.

    Cut at the ends of the code's cell: halfway to the next levels, and half a step beyond the outermost. Rounded
    towards 0, so that levels[codes] + residual rounds to these codes."""
    codes, grid = quantized.codes.int(), quantized.grid
    scale, offset = map(per_block, grid.factors())
    levels, low, high = grid.levels.float(), *ends(grid.levels.float())
    midpoints = (levels[1:] + levels[:-1]) / 2
    of_cell = torch.cat((low[None], midpoints)) - levels, torch.cat((midpoints, high[None])) - levels
    position = join_blocks(normalise(split_blocks(weight.float(), grid.block), scale, offset))
    exact = (position - levels[codes]).clamp(*(end[codes] for end in of_cell))
    found = exact.half()
    found = torch.where(found.float().abs() > exact.abs(), towards_zero(found), found)
    for _ in range(2):  # an end that a tie gives to the lower code
        found = torch.where(rounded(levels[codes] + found, grid).codes == quantized.codes, found, towards_zero(found))
    return torch.where(rounded(levels[codes] + found, grid).codes == quantized.codes, found, 0)


def towards_zero(values: Tensor) -> Tensor:
    """The next float16; 0 stays."""
    return torch.where(values == 0, values, (values.view(torch.int16) - 1).view(torch.float16))


def ends(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Half the outermost step beyond the first and the last level."""
    return levels[0] - (levels[1] - levels[0]) / 2, levels[-1] + (levels[-1] - levels[-2]) / 2


def clipped(position: Tensor, grid: Grid) -> Tensor:
    """Where the grid has no level to round to: more than half the outermost step beyond its first or last level. A
    block of scale 0 has one value, so all of it is clipped. bool, (D_out, D_in)."""
    low, high = ends(grid.levels.to(position.dtype))
    beyond = (position < low) | (position > high)
    scale, _ = grid.factors()
    still = per_block(inverse_of(scale.to(position.dtype)) == 0)
    n_in = position.shape[1] // scale.shape[1]
    beyond.unflatten(1, (-1, n_in)).unflatten(0, (-1, grid.block.n_out)).logical_or_(still)
    return beyond
