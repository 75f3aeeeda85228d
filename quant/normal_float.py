"""NormalFloat (Dettmers et al. 2023, QLoRA): levels that are equally likely under a normal distribution."""
from statistics import NormalDist

import torch
from torch import Tensor

from quant.grid import Block
from quant.quantizer import Quantizer, block_absmax

# The probability of the outermost level. The published table was made with seven digits. The exact 0.967708333... moves
# its levels by 2e-7, and codes would differ from those of bitsandbytes.
OUTERMOST = round(1 - (1 / 30 + 1 / 32) / 2, 7)


def normal_float_levels(bits: int) -> Tensor:
    """(2^N,) ascending, float32, in [-1, 1]: `upper_quantiles(2^(N-1))`, an exact 0, and the negative of
    `upper_quantiles(2^(N-1) - 1)`, all divided by the largest."""
    half = 2 ** (bits - 1)
    levels = torch.tensor([*upper_quantiles(half), 0.0, *(-q for q in upper_quantiles(half - 1))]).sort().values
    return levels / levels.max()


def upper_quantiles(n: int) -> list[float]:
    """Phi^-1 of n equally spaced probabilities, from `OUTERMOST` down to 1/2, without 1/2 itself.

    The probabilities are float32 numbers, like those of the published table."""
    return [NormalDist().inv_cdf(p) for p in torch.linspace(OUTERMOST, 0.5, n + 1, dtype=torch.float32)[:-1].tolist()]


class NormalFloat(Quantizer):
    """scale = max|w|;  offset = 0;  levels = quantiles of N(0, 1)."""
    name = "nf"
    allowed_bits = (2, 3, 4)
    usual_block = Block(64, 1)
    usual_storage = torch.float32

    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return normal_float_levels(self.bits), block_absmax(blocks), torch.zeros(1, 1, device=blocks.device)
