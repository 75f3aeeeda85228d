"""QA-LoRA (Xu et al. 2023; blora.txt Sec. 2 and Table 1)."""
from torch import Tensor, nn

from adapters.lam import Lam, group_mean
from adapters.lora import low_rank_factors
from adapters.operators import AvgPool


class QALoRA(nn.Module):
    """delta_W = scaling / group * kron(B A, ones(1, group)), group = lam_in: A reads each group's mean.

    The mean, as in its released code (DESIGN.md Section 4); sums would be the same adapter with A `group` times as large."""
    name = "qalora"
    options = ("lam", "rank", "lora_alpha")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float):
        super().__init__()
        if lam.lam_out != 1:
            raise ValueError(f"lam {lam} is not possible with qalora, which pools inputs only: give --lam {lam.lam_in}x1 (and, to "
                             f"merge into k bits, a --block with one output, as in {lam.lam_in}x1), or use qablora")
        self.lam, self.tile, self.scaling = lam, lam, lora_alpha / rank
        self.A, self.B = low_rank_factors(D_out, D_in // lam.lam_in, rank)

    def delta(self, x: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)"""
        return self.scaling * (group_mean(x, self.lam.lam_in) @ self.A.T.to(x.dtype) @ self.B.T.to(x.dtype))

    def delta_weight(self) -> Tensor:
        """(D_out, D_in)"""
        return self.scaling * AvgPool.expand(self.B @ self.A, self.lam)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """A C (r, D_in) and B (D_out, r) of the plain LoRA that this is: the mean of a group goes into A."""
        return AvgPool.expand(self.A, self.lam), self.B
