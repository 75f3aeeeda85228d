"""The compression operators of Shen et al., Table 6. C makes one of lam_in inputs, R makes lam_out of one output.

    delta_W = scaling * R core C          C: (D_in/lam_in, D_in), R: (D_out, D_out/lam_out)

No operator has parameters and all are linear, so each adapter that uses them is one matrix.
"""
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.lam import Lam, group_mean, repeat_each


class Operators(ABC):
    """One row of the table: a way to compress and the matching way to restore."""
    name: str

    @staticmethod
    @abstractmethod
    def compress(x: Tensor, lam_in: int) -> Tensor:
        """x @ C.T: (..., D_in) -> (..., D_in/lam_in)."""

    @staticmethod
    @abstractmethod
    def restore(y: Tensor, lam_out: int) -> Tensor:
        """y @ R.T: (..., D_out/lam_out) -> (..., D_out)."""

    @staticmethod
    @abstractmethod
    def expand(core: Tensor, lam: Lam) -> Tensor:
        """R core C: (D_out/lam_out, D_in/lam_in) -> (D_out, D_in)."""

    @staticmethod
    def tile(lam: Lam) -> Lam:
        """The largest rectangle on which R core C is constant for every core. A merge depends on it (`merge.py`)."""
        return Lam(1, 1)


class AvgPool(Operators):
    """AvgPool & repeat_interleave (Shen et al., Sec. 3.2): R core C = 1/lam_in * kron(core, ones(lam_out, lam_in)).

    Differs from `get_delta_weight` of Algorithm 1, which repeats along dim 1 twice and omits s (erratum 4)."""
    name = "avgpool"

    @staticmethod
    def compress(x: Tensor, lam_in: int) -> Tensor:
        return group_mean(x, lam_in)

    @staticmethod
    def restore(y: Tensor, lam_out: int) -> Tensor:
        return repeat_each(y, lam_out)

    @staticmethod
    def expand(core: Tensor, lam: Lam) -> Tensor:
        if lam == Lam(1, 1):
            return core
        return torch.kron(core, core.new_ones(lam.lam_out, lam.lam_in)) / lam.lam_in

    @staticmethod
    def tile(lam: Lam) -> Lam:
        return lam


class Truncation(Operators):
    """truncation & supplement_0: C keeps the first D_in/lam_in inputs, R appends zeros. R core C holds `core` in its
    top left corner."""
    name = "truncation"

    @staticmethod
    def compress(x: Tensor, lam_in: int) -> Tensor:
        return x[..., :x.shape[-1] // lam_in]

    @staticmethod
    def restore(y: Tensor, lam_out: int) -> Tensor:
        return F.pad(y, (0, y.shape[-1] * (lam_out - 1)))

    @staticmethod
    def expand(core: Tensor, lam: Lam) -> Tensor:
        rows, columns = core.shape
        return F.pad(core, (0, columns * (lam.lam_in - 1), 0, rows * (lam.lam_out - 1)))


class IntervalSampling(Operators):
    """interval_sampling & interpolation: C keeps every lam_in-th input, R puts lam_out - 1 zeros after each output.
    R core C holds `core` at those rows and columns."""
    name = "interval"

    @staticmethod
    def compress(x: Tensor, lam_in: int) -> Tensor:
        return x[..., ::lam_in]

    @staticmethod
    def restore(y: Tensor, lam_out: int) -> Tensor:
        return F.pad(y[..., None], (0, lam_out - 1)).flatten(-2)

    @staticmethod
    def expand(core: Tensor, lam: Lam) -> Tensor:
        spread = core.new_zeros(core.shape[0] * lam.lam_out, core.shape[1] * lam.lam_in)
        spread[::lam.lam_out, ::lam.lam_in] = core
        return spread


OPERATORS: dict[str, type[Operators]] = {kind.name: kind for kind in (AvgPool, Truncation, IntervalSampling)}
