"""QA-BLoRA (Shen et al., Sec. 3.3 and Algorithm 2)."""
import torch
from torch import Tensor, nn

from adapters.adapter import AdditiveAdapter
from adapters.lam import Lam
from adapters.lora import SCALINGS
from adapters.operators import OPERATORS


class QABLoRA(AdditiveAdapter):
    """delta_W = scaling * R H C, where H is one full matrix. With the default operators,
    delta_W = scaling / lam_in * kron(H, ones(lam_out, lam_in)).

    H starts at zero, so that step 0 is the base model. Differs from the authors' code, which starts H at random
    (erratum 6). Only the adapter's output is scaled and repeated (erratum 2). `rank` is nominal: it only sets the
    scaling."""
    name = "qablora"
    options = ("lam", "rank", "lora_alpha", "scaling", "operators")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float, scaling: str = "lora",
                 operators: str = "avgpool"):
        super().__init__()
        self.lam, self.scaling, self.operators = lam, SCALINGS[scaling](lora_alpha, rank), OPERATORS[operators]
        self.H = nn.Parameter(torch.zeros(D_out // lam.lam_out, D_in // lam.lam_in))

    def core(self, x: Tensor) -> Tensor:
        return x @ self.H.T.to(x.dtype)

    def core_weight(self) -> Tensor:
        return self.H

    def core_factors(self) -> tuple[Tensor, Tensor]:
        """H = I H if H is wider than high, else H = H I: the rank is the smaller size of H."""
        rows, columns = self.H.shape
        eye = torch.eye(min(rows, columns), dtype=self.H.dtype, device=self.H.device)
        return (self.H, eye) if rows <= columns else (eye, self.H)
