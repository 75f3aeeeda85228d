"""The loop over columns of GPTQ: round one, and make the columns still to come compensate for its error.

Columns are rows of memory here, so that every operation runs along contiguous outputs."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.grid import Grid, inverse_of
from quant.rounding import nearest_whole, whole_ends


@dataclass(frozen=True)
class ColumnGrid:
    """The grid of the weights of one input: scale, its inverse and offset, one for each output or one for all."""
    scale: Tensor
    inverse: Tensor
    offset: Tensor
    levels: Tensor
    ends: tuple[float, float] | None  # the lowest and the highest level, if levels are consecutive whole numbers

    @classmethod
    def of(cls, grid: Grid, column: int, wide: torch.dtype) -> "ColumnGrid":
        """For an input in column `column` of blocks."""
        def per_output(factor: Tensor) -> Tensor:
            one = factor[:, column if factor.shape[1] > 1 else 0].to(wide)
            return one if len(one) == 1 else one.repeat_interleave(grid.block.n_out)
        scale, offset = map(per_output, grid.factors())
        levels = grid.levels.to(wide)
        return cls(scale, inverse_of(scale), offset, levels, whole_ends(levels))

    def round(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, in some number type, and levels[codes], by the arithmetic of `round_to_grid`."""
        values = (weights - self.offset).mul_(self.inverse)
        if self.ends:
            nearest = nearest_whole(values, *self.ends)
            return nearest - self.ends[0] if self.ends[0] else nearest, nearest
        codes = torch.bucketize(values, (self.levels[1:] + self.levels[:-1]) / 2, out_int32=True)
        return codes, self.levels.index_select(0, codes)


def round_columns(w: Tensor, U: Tensor, codes: Tensor, start: int, end: int,
                  grid_of: Callable[[int], ColumnGrid]) -> None:
    """Round columns start..end-1 one by one, and subtract err * U_i, err = (w - w_hat) / U_ii, from the columns to the
    right: at once inside the range, in one product beyond it. w and codes: (D_in, D_out)."""
    errors = torch.empty_like(w[start:end])
    round_range(w[start:end], U[start:end, start:end], codes[start:end], errors, lambda i: grid_of(start + i))
    spread_errors(w, U, start, end, errors)


def round_range(w: Tensor, U: Tensor, codes: Tensor, errors: Tensor, grid_of: Callable[[int], ColumnGrid]) -> None:
    """The range alone: all tensors hold its columns only. Writes codes and errors, and changes w."""
    update, diagonal = torch.empty_like(w), U.diagonal().unbind()
    for i in range(len(w)):
        grid = grid_of(i)
        codes[i], values = grid.round(w[i])
        w_hat = torch.addcmul(grid.offset, grid.scale, values)
        error = torch.sub(w[i], w_hat, out=errors[i]).div_(diagonal[i])
        w[i + 1:] -= torch.mul(U[i, i + 1:, None], error, out=update[i + 1:])


def spread_errors(w: Tensor, U: Tensor, start: int, end: int, errors: Tensor) -> None:
    """From the range start..end-1 to all columns behind it."""
    w[end:] -= U[start:end, end:].T @ errors
