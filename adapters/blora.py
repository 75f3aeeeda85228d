"""BLoRA (blora.txt Sec. 3.2, Algorithm 1). With a quantized base: Q-BLoRA."""
from torch import Tensor, nn

from adapters.kronecker import Lam, expand_core, group_mean, repeat_each
from adapters.lora import low_rank_factors


class BLoRA(nn.Module):
    """delta_W = scaling / lam * kron(B A, ones(lam, lam)), rank of B A: lam * r, as many parameters as LoRA of rank r.

    Differs from Algorithm 1, which scales and repeats the SUM of base and adapter: only the adapter's part is, as the
    text of Sec. 3.2 has it (erratum 2). Factors are (out, in), as nn.Linear's weights (erratum 3)."""
    name = "blora"

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float):
        super().__init__()
        if lam.lam_in != lam.lam_out:
            raise ValueError(f"lam {lam} is not possible with blora, whose one balancing factor serves inputs, outputs "
                             f"and rank: give one number, as in --lam 2")
        self.lam, self.scaling = lam, lora_alpha / rank
        self.A, self.B = low_rank_factors(D_out // lam.lam_out, D_in // lam.lam_in, rank * lam.lam_in)

    def delta(self, x: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)"""
        pooled = group_mean(x, self.lam.lam_in)
        return repeat_each(self.scaling * (pooled @ self.A.T.to(x.dtype) @ self.B.T.to(x.dtype)), self.lam.lam_out)

    def delta_weight(self) -> Tensor:
        """(D_out, D_in)"""
        return expand_core(self.B @ self.A, self.lam, self.scaling)
