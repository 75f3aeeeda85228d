"""QA-LoRA (Xu et al. 2023; Shen et al., Sec. 2 and Table 1)."""
from torch import Tensor

from adapters.adapter import AdditiveAdapter
from adapters.lam import Lam
from adapters.lora import low_rank_factors


class QALoRA(AdditiveAdapter):
    """delta_W = scaling / group * kron(B A, ones(1, group)), group = lam_in: A reads the mean of each group of inputs.

    The mean is that of the released code. Sums would give the same adapter with an A that is `group` times as large."""
    name = "qalora"
    options = ("lam", "rank", "lora_alpha")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float):
        super().__init__()
        if lam.lam_out != 1:
            raise ValueError(f"lam {lam} is not possible with qalora, which averages inputs only: give "
                             f"--lam {lam.lam_in}x1 (and, to merge into k bits, a --block with one output, such as "
                             f"{lam.lam_in}x1), or use qablora")
        self.lam, self.scaling = lam, lora_alpha / rank
        self.A, self.B = low_rank_factors(D_out, D_in // lam.lam_in, rank)

    def core_factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B
