"""BLoRA (blora.txt Sec. 3.2, Algorithm 1). With a quantized base: Q-BLoRA."""
from torch import Tensor, nn

from adapters.lora import low_rank_factors
from adapters.operators import OPERATORS
from adapters.lam import Lam


class BLoRA(nn.Module):
    """delta_W = scaling * R B A C, rank of B A: lam * r, as many parameters as LoRA of rank r. With the usual operators
    (AvgPool, repeat_interleave) that is scaling / lam * kron(B A, ones(lam, lam)).

    Differs from Algorithm 1, which scales and repeats the SUM of base and adapter: only the adapter's part is, as the
    text of Sec. 3.2 has it (erratum 2). Factors are (out, in), as nn.Linear's weights (erratum 3)."""
    name = "blora"
    options = ("lam", "rank", "lora_alpha", "operators")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float, operators: str = "avgpool"):
        super().__init__()
        if lam.lam_in != lam.lam_out:
            raise ValueError(f"lam {lam} is not possible with blora, whose one balancing factor serves inputs, outputs "
                             f"and rank: give one number, as in --lam 2")
        self.lam, self.scaling, self.operators = lam, lora_alpha / rank, OPERATORS[operators]
        self.tile = self.operators.tile(lam)
        self.A, self.B = low_rank_factors(D_out // lam.lam_out, D_in // lam.lam_in, rank * lam.lam_in)

    def delta(self, x: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)"""
        compressed = self.operators.compress(x, self.lam.lam_in)
        return self.operators.restore(self.scaling * (compressed @ self.A.T.to(x.dtype) @ self.B.T.to(x.dtype)), self.lam.lam_out)

    def delta_weight(self) -> Tensor:
        """(D_out, D_in)"""
        return self.scaling * self.operators.expand(self.B @ self.A, self.lam)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """A C (R, D_in) and R B (D_out, R) of the plain LoRA that this is, of rank R = lam * r: compression and restoration are linear, so that
        each goes into its factor."""
        return self.operators.expand(self.A, Lam(self.lam.lam_in, 1)), self.operators.expand(self.B, Lam(1, self.lam.lam_out))
