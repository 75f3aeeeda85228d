"""QA-BLoRA (blora.txt Sec. 3.3, Algorithm 2)."""
import torch
from torch import Tensor, nn

from adapters.kronecker import Lam, expand_core, group_mean, repeat_each


class QABLoRA(nn.Module):
    """delta_W = scaling / lam_in * kron(H, ones(lam_out, lam_in)), H one full matrix.

    H starts at zero, so that step 0 is the base model; the authors' code starts at random (erratum 6). Only the adapter's
    part is scaled and repeated (erratum 2). `rank` is nominal: it only sets scaling = lora_alpha / rank."""
    name = "qablora"

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float):
        super().__init__()
        self.lam, self.scaling = lam, lora_alpha / rank
        self.H = nn.Parameter(torch.zeros(D_out // lam.lam_out, D_in // lam.lam_in))

    def delta(self, x: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)"""
        return repeat_each(self.scaling * (group_mean(x, self.lam.lam_in) @ self.H.T.to(x.dtype)), self.lam.lam_out)

    def delta_weight(self) -> Tensor:
        """(D_out, D_in)"""
        return expand_core(self.H, self.lam, self.scaling)
