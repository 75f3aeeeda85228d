"""QA-LoRA (Xu et al. 2023; Shen et al., Sec. 2 and Table 1)."""
from torch import Tensor

from adapters.adapter import AdditiveAdapter
from adapters.lam import Lam
from adapters.lora import SCALINGS, low_rank_factors


class QALoRA(AdditiveAdapter):
    """delta_W = scaling / group * kron(B A, ones(1, group)), group = lam_in: A reads the mean of each group of inputs.

    The mean is that of the released code. Sums would give the same adapter with an A that is `group` times as large.

    Differs from code that draws A for D_in inputs: A is drawn here for the D_in/group means that it reads, so it is
    sqrt(group) times as large. Step 0 is the base in both. With Adam, 256 inputs and group 32, ||delta_W|| is 5.7 times
    as large after one step. After 100 steps it is 3.3 times at a learning rate of 2e-4, and 1.15 times at 2e-3.

    Differs from code that drops pooled values: dropout acts on the inputs, before pooling (`AdaptedLinear`), as it does
    for all adapters here. The variance of its noise is the same for independent inputs of mean 0. At group 32 on the
    embedded base, dropout after pooling has 1.03 times ours as the mean over layers, 0.24 to 2.5 in single layers.

    Which of the two a release does was not checked, and accuracy was not measured."""
    name = "qalora"
    options = ("lam", "rank", "lora_alpha", "scaling")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float, scaling: str = "lora"):
        super().__init__()
        if lam.lam_out != 1:
            raise ValueError(f"lam {lam} is not possible with qalora, which averages inputs only: give "
                             f"--lam {lam.lam_in}x1 (and, to merge into k bits, a --block with one output, such as "
                             f"{lam.lam_in}x1), or use qablora")
        self.lam, self.scaling = lam, SCALINGS[scaling](lora_alpha, rank)
        self.A, self.B = low_rank_factors(D_out, D_in // lam.lam_in, rank)

    def core_factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B
