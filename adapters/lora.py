"""LoRA (Hu et al. 2021; blora.txt Sec. 3.1). With a quantized base: QLoRA."""
import math

import torch
from torch import Tensor, nn

from adapters.lam import Lam


def low_rank_factors(n_out: int, n_in: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank, n_in) ~ kaiming_uniform(a=sqrt(5)), B (n_out, rank) = 0, float32: B A is zero at the start."""
    A = nn.Parameter(torch.empty(rank, n_in))
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return A, nn.Parameter(torch.zeros(n_out, rank))


class LoRA(nn.Module):
    """delta_W = scaling * B A."""
    name = "lora"
    options = ("lam", "rank", "lora_alpha")
    tile = Lam(1, 1)

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float):
        super().__init__()
        if lam != Lam(1, 1):
            raise ValueError(f"lam {lam} is not possible with lora, which pools nothing: use blora, or lam 1x1")
        self.scaling = lora_alpha / rank
        self.A, self.B = low_rank_factors(D_out, D_in, rank)

    def delta(self, x: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)"""
        return self.scaling * (x @ self.A.T.to(x.dtype) @ self.B.T.to(x.dtype))

    def delta_weight(self) -> Tensor:
        """(D_out, D_in)"""
        return self.scaling * (self.B @ self.A)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """A (r, D_in) and B (D_out, r) of the plain LoRA that this is: delta_W = scaling * B A."""
        return self.A, self.B
