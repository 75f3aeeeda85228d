"""Rounding to a grid, fast: `grid.round_to_grid`, the same codes, some rows at a time.

On a CPU a search among the midpoints of levels takes most of the time. Two other ways find the same codes: round to the
nearest whole number, where the levels are whole numbers, and count the midpoints below a weight, one by one."""
import torch
from torch import Tensor

from quant.grid import SHORT, Grid, inverse_of, per_block, per_input, round_to_grid

AT_A_TIME = 1 << 16   # weights that a thread rounds at a time
FEW = 16              # levels; among more, a search is faster than a comparison with each midpoint


def round_rows(weight: Tensor, grid: Grid) -> Tensor:
    """The codes of `round_to_grid`, uint8, (D_out, D_in)."""
    if not weight.is_cpu:
        return round_to_grid(weight, grid)
    (D_out, D_in), n_out = weight.shape, grid.block.n_out
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale, offset = (factor.to(wide) for factor in grid.factors())
    inverse, levels, shifted = inverse_of(scale), grid.levels.to(wide), bool(offset.any())
    n_in = D_in // scale.shape[1]
    rows = n_out * max(1, AT_A_TIME * torch.get_num_threads() // (n_out * D_in))
    codes = torch.empty(D_out, D_in, dtype=torch.uint8)
    values = torch.empty(min(rows, D_out), D_in, dtype=wide)
    for first in range(0, D_out, rows):
        part = values[:min(rows, D_out - first)].copy_(weight[first:first + rows])
        blocks = part.unflatten(0, (-1, n_out))
        if n_in >= SHORT:
            blocks = blocks.unflatten(2, (-1, n_in))

        def spread(factor: Tensor, at: int = first // n_out, blocks: Tensor = blocks) -> Tensor:
            factor = factor if len(factor) == 1 else factor[at:at + len(blocks)]
            return per_block(factor) if n_in >= SHORT else per_input(factor, n_in)
        if shifted:
            blocks.sub_(spread(offset))
        blocks.mul_(spread(inverse))
        codes[first:first + rows] = nearest(part, levels)
    return codes


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The code of the nearest level, int16; a tie goes to the lower code. Overwrites the values."""
    if ends := whole_ends(levels):
        return nearest_whole(values, *ends).sub_(ends[0]).to(torch.int16)
    midpoints = (levels[1:] + levels[:-1]) / 2
    if len(levels) > FEW:
        return torch.bucketize(values, midpoints, out_int32=True).to(torch.int16)
    below, count = torch.empty_like(values), torch.zeros_like(values)
    for midpoint in midpoints.tolist():
        count.add_(torch.gt(values, midpoint, out=below))
    return count.to(torch.int16)


def whole_ends(levels: Tensor) -> tuple[float, float] | None:
    """The lowest and the highest of levels that are consecutive whole numbers; None for other levels."""
    low = float(levels[0])
    whole = low.is_integer() and torch.equal(levels, torch.arange(len(levels), device=levels.device).to(levels) + low)
    return (low, float(levels[-1])) if whole else None


def nearest_whole(values: Tensor, low: float, high: float) -> Tensor:
    """The nearest of the whole numbers low .. high; a tie goes to the lower. Overwrites the values."""
    rounded = values.round()                      # a tie goes to the even number
    too_high = values.sub_(rounded).eq_(-0.5)     # 1 for a tie that went up
    return rounded.sub_(too_high).clamp_(low, high)
