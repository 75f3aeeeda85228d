"""The compression operators of blora.txt Table 6: how lam_in inputs become one, and one output becomes lam_out. None has a
parameter, and all are linear, so each adapter that uses them is one matrix:

    delta_W = scaling * R core C          C: (D_in/lam_in, D_in), R: (D_out, D_out/lam_out)

Each class is one row of the table: `compress` multiplies by C, `restore` by R, `expand` writes R core C out, and `tile` is the
largest rectangle of lam_in x lam_out on which R core C is constant whatever `core` is: what merging asks for.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.lam import Lam, group_mean, repeat_each


class AvgPool:
    """AvgPool & repeat_interleave (blora.txt Sec. 3.2): R core C = 1/lam_in * kron(core, ones(lam_out, lam_in)).

    Differs from `get_delta_weight` of Algorithm 1, which repeats along dim 1 twice and leaves s out (erratum 4)."""
    name = "avgpool"

    @staticmethod
    def compress(x: Tensor, lam_in: int) -> Tensor:
        return group_mean(x, lam_in)

    @staticmethod
    def restore(y: Tensor, lam_out: int) -> Tensor:
        return repeat_each(y, lam_out)

    @staticmethod
    def expand(core: Tensor, lam: Lam) -> Tensor:
        return torch.kron(core, core.new_ones(lam.lam_out, lam.lam_in)) / lam.lam_in

    @staticmethod
    def tile(lam: Lam) -> Lam:
        return lam


class Truncation:
    """truncation & supplement_0: the first D_in/lam_in inputs; outputs, then zeros. `core` is the top left corner of R core C."""
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

    @staticmethod
    def tile(lam: Lam) -> Lam:
        return Lam(1, 1)


class IntervalSampling:
    """interval_sampling & interpolation: every lam_in-th input; every lam_out-th output, zeros between. R core C holds `core`
    at those rows and columns."""
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

    @staticmethod
    def tile(lam: Lam) -> Lam:
        return Lam(1, 1)


OPERATORS = {operators.name: operators for operators in (AvgPool, Truncation, IntervalSampling)}
