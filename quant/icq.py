"""ICQ, the information calibration quantization of IR-QLoRA (Qin et al. 2024): NormalFloat of w - tau, with the tau
whose codes carry the most information."""
import math
from statistics import NormalDist

import torch
from torch import Tensor

from quant.grid import Block, normalise
from quant.normal_float import OUTERMOST, NormalFloat, normal_float_levels

SEARCHED = 0.1        # the farthest candidate, in sigma from the median, in units of the block's absmax
CANDIDATES = 201
SIGMA = 1 / NormalDist().inv_cdf(OUTERMOST)  # of a normal distribution whose NF levels end at 1: 0.541087
AT_A_TIME = 1 << 22   # weights x candidates in memory


class ICQ(NormalFloat):
    """tau0 = median, a = max|w - tau0|, candidates tau = f * a + tau0 with f in linspace(-0.1 sigma, 0.1 sigma, 201);
    scale = max|w - tau|;  offset = tau;  levels = NF_N. The tau with the largest `code_entropy` wins; a tie goes to the
    smallest |f|.

    tau = 0, which is plain NormalFloat, is tried last, so no block carries less information than with NF. Differs from
    the published search, which does not try it. Double quantization rounds tau and scale once more after the search;
    then only the mean over the blocks stays above NF's. The search runs once, when a base is quantized.

    Differs, in ties, from a search in ascending f that keeps the first of equals. Of the embedded base's blocks, 76 %
    have ties at 4 bits (94 % at 2 bits), and that search takes another tau in 41 % (59 %). Its tau is 0.1 % (0.6 %) of
    absmax away, and the norm of the error differs by 0.03 % (0.4 %). Which of the two a release does was not
    checked."""
    name = "icq"
    usual_block = Block(64, 1)

    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, _, columns, _ = blocks.shape
        flat = blocks.transpose(1, 2).flatten(0, 1).flatten(1)  # (rows * columns, n_out * n_in)
        levels = normal_float_levels(self.bits).to(flat)
        parts = flat.split(max(1, AT_A_TIME // (flat.shape[1] * CANDIDATES)))
        best = [self.best_tau(part, levels) for part in parts]
        tau, scale = (torch.cat(factor).view(rows, columns) for factor in zip(*best, strict=True))
        return levels.float(), scale, tau

    def best_tau(self, w: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(n, size of a block) -> tau and scale, both (n,), rounded to storage before their codes are compared."""
        tau = self.candidates(w).to(self.storage).to(w.dtype)                              # (n, candidates)
        # max|w - tau| is at the block's smallest or largest weight
        scale = torch.maximum(w.amax(1, keepdim=True) - tau, tau - w.amin(1, keepdim=True)).to(self.storage).to(w.dtype)
        entropy = code_entropy(w.sort(1).values, levels, scale, tau)
        # the first of equals, up to the rounding of the sum: candidates are in ascending |f|
        best = (entropy >= entropy.amax(1, keepdim=True) - 1e-9).int().argmax(1, keepdim=True)
        return tau.gather(1, best)[:, 0], scale.gather(1, best)[:, 0]

    def candidates(self, w: Tensor) -> Tensor:
        """(n, 202): candidates in ascending |f|, then tau = 0."""
        half = CANDIDATES // 2  # whole numbers, so that f = 0 (the median) is exact
        f = torch.arange(-half, half + 1, dtype=w.dtype, device=w.device) * (SEARCHED * SIGMA / half)
        f = f[f.abs().argsort(stable=True)]
        tau0 = w.median(1, keepdim=True).values
        a = (w - tau0).abs().amax(1, keepdim=True)
        return torch.cat((f * a + tau0, torch.zeros_like(tau0)), 1)


def code_entropy(ordered: Tensor, levels: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """-sum_c p_c log2 p_c in bits. p_c is the share of a block's weights that get code c.

    ordered: (n, size) weights, ascending in each block; scale, offset: (n, candidates). -> (n, candidates), float64.
    Sorted weights stay sorted on a grid, so the position of each midpoint gives the counts. They are the
    counts of the codes that rounding chooses."""
    values = normalise(ordered[:, None, :], scale[..., None], offset[..., None])  # (n, candidates, size)
    midpoints = ((levels[1:] + levels[:-1]) / 2).expand(*values.shape[:2], -1).contiguous()
    below = torch.searchsorted(values, midpoints, right=True)
    counts = torch.diff(below, dim=-1, prepend=torch.zeros_like(below[..., :1]),
                        append=torch.full_like(below[..., :1], values.shape[-1]))
    return torch.special.entr(counts.double() / values.shape[-1]).sum(-1) / math.log(2)
