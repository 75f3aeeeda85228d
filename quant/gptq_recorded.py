"""GPTQ's loop over the columns of a lazy block, recorded on a GPU: one launch in place of about ten for each column.

A column of SmolLM2-135M takes half a millisecond to launch and a few microseconds to compute. A recording has one
shape, and serves every block of that shape in a model. The operations are those of `round_range`, in its order.

It needs all groups' grids before the loop: with act_order, or with double quantization.
"""
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from quant.gptq_columns import ColumnGrid, round_range, spread_errors

KEPT = 32  # recordings; a model has about as many shapes as kinds of layers
_recordings: dict[tuple, "RecordedRange"] = {}
_failed: list[str] = []  # why nothing is recorded in this process


class RecordedRange:
    """The columns of one range, in tensors that stay in place. On other devices than CUDA it computes anew each time:
    the same numbers."""

    def __init__(self, columns: int, grid: ColumnGrid, like: Tensor):
        shape = (columns, like.shape[1])
        self.w, self.errors, self.scale, self.inverse, self.offset = (like.new_zeros(shape) for _ in range(5))
        self.U = torch.eye(columns, dtype=like.dtype, device=like.device)
        self.codes = torch.zeros(shape, dtype=torch.uint8, device=like.device)
        self.levels, self.ends = grid.levels.clone(), grid.ends
        self.graph = None
        if like.is_cuda:
            self._warm_up(like.device)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._round()

    def _round(self) -> None:
        round_range(self.w, self.U, self.codes, self.errors,
                    lambda i: ColumnGrid(self.scale[i], self.inverse[i], self.offset[i], self.levels, self.ends))

    def _warm_up(self, device: torch.device) -> None:
        """On a stream of its own, as a recording asks for."""
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._round()
        torch.cuda.current_stream(device).wait_stream(stream)

    def __call__(self, w: Tensor, U: Tensor, codes: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """Writes the codes and returns the errors."""
        for mine, given in zip((self.w, self.U, self.scale, self.inverse, self.offset), (w, U, *factors), strict=True):
            mine.copy_(given)
        self._round() if self.graph is None else self.graph.replay()
        codes.copy_(self.codes)
        return self.errors


class FixedGrids:
    """The grids of all columns, known before the loop. `round_columns` is that of gptq_columns.py."""

    def __init__(self, groups: Sequence[ColumnGrid], group_of: Tensor, like: Tensor):
        def stacked(factors: Sequence[Tensor]) -> Tensor:
            return torch.stack([factor.expand(like.shape[1]) for factor in factors])
        self.grid, self.levels, self.group_of = groups[0], tuple(groups[0].levels.tolist()), group_of
        self.factors = (stacked([g.scale for g in groups]), stacked([g.inverse for g in groups]),
                        stacked([g.offset for g in groups]))

    def round_columns(self, w: Tensor, U: Tensor, codes: Tensor, start: int, end: int) -> None:
        mine, of_range = slice(start, end), self.group_of[start:end]
        recorded = recording(end - start, self.grid, self.levels, w)
        errors = recorded(w[mine], U[mine, mine], codes[mine], [factor[of_range] for factor in self.factors])
        spread_errors(w, U, start, end, errors)


def recording(columns: int, grid: ColumnGrid, levels: tuple[float, ...], w: Tensor) -> RecordedRange:
    key = (columns, w.shape[1], w.dtype, w.device, levels)
    if key not in _recordings:
        if len(_recordings) >= KEPT:
            _recordings.clear()
        _recordings[key] = RecordedRange(columns, grid, w)
    return _recordings[key]


def fixed_grids(groups: Sequence[ColumnGrid], group_of: Tensor, w: Tensor, columns: int) -> FixedGrids | None:
    """None where nothing is gained, or where a GPU cannot record. A line on stderr says the latter, once."""
    if not groups or not w.is_cuda or _failed:
        return None
    try:
        grids = FixedGrids(groups, group_of, w)
        recording(columns, grids.grid, grids.levels, w)
        return grids
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _failed.append(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
        print(f"GPTQ's columns are not recorded, but launched one by one: {_failed[0]}", file=sys.stderr)
        return None
