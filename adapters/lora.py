"""LoRA (Hu et al. 2021; Shen et al., Sec. 3.1). With a quantized base: QLoRA."""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adapters.adapter import AdditiveAdapter
from adapters.lam import Lam

# The factor s of delta_W, from lora_alpha and the nominal rank r. rsLoRA: Kalajdzievski 2023.
SCALINGS: dict[str, Callable[[float, int], float]] = {
    "lora": lambda lora_alpha, rank: lora_alpha / rank,
    "rslora": lambda lora_alpha, rank: lora_alpha / math.sqrt(rank)}


def low_rank_factors(n_out: int, n_in: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank, n_in) ~ kaiming_uniform(a=sqrt(5)) and B (n_out, rank) = 0, float32: B A is zero at the start."""
    A = nn.Parameter(torch.empty(rank, n_in))
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return A, nn.Parameter(torch.zeros(n_out, rank))


class LoRA(AdditiveAdapter):
    """delta_W = s * B A,   s = lora_alpha / rank, or lora_alpha / sqrt(rank) with scaling "rslora"."""
    name = "lora"
    options = ("lam", "rank", "lora_alpha", "scaling")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float, scaling: str = "lora"):
        super().__init__()
        if lam != Lam(1, 1):
            raise ValueError(f"lam {lam} is not possible with lora, which averages no inputs: give lam 1x1, or "
                             f"use blora")
        self.scaling = SCALINGS[scaling](lora_alpha, rank)
        self.A, self.B = low_rank_factors(D_out, D_in, rank)

    def core_factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B
