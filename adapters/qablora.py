"""QA-BLoRA (blora.txt Sec. 3.3, Algorithm 2)."""
import torch
from torch import Tensor, nn

from adapters.lam import Lam
from adapters.operators import OPERATORS


class QABLoRA(nn.Module):
    """delta_W = scaling * R H C, H one full matrix. With the usual operators (AvgPool, repeat_interleave) that is
    scaling / lam_in * kron(H, ones(lam_out, lam_in)).

    H starts at zero, so that step 0 is the base model; the authors' code starts at random (erratum 6). Only the adapter's
    part is scaled and repeated (erratum 2). `rank` is nominal: it only sets scaling = lora_alpha / rank."""
    name = "qablora"
    options = ("lam", "rank", "lora_alpha", "operators")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float, operators: str = "avgpool"):
        super().__init__()
        self.lam, self.scaling, self.operators = lam, lora_alpha / rank, OPERATORS[operators]
        self.tile = self.operators.tile(lam)
        self.H = nn.Parameter(torch.zeros(D_out // lam.lam_out, D_in // lam.lam_in))

    def delta(self, x: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)"""
        compressed = self.operators.compress(x, self.lam.lam_in)
        return self.operators.restore(self.scaling * (compressed @ self.H.T.to(x.dtype)), self.lam.lam_out)

    def delta_weight(self) -> Tensor:
        """(D_out, D_in)"""
        return self.scaling * self.operators.expand(self.H, self.lam)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """Of the plain LoRA that this is, exactly, of rank min(D_out/lam_out, D_in/lam_in): H = I H where H is wider than high, H = H I
        where not; compression and restoration go into the factors."""
        rows, columns = self.H.shape
        eye = torch.eye(min(rows, columns), dtype=self.H.dtype, device=self.H.device)
        A, B = (self.H, eye) if rows <= columns else (eye, self.H)
        return self.operators.expand(A, Lam(self.lam.lam_in, 1)), self.operators.expand(B, Lam(1, self.lam.lam_out))
