"""BLoRA (Shen et al., Sec. 3.2 and Algorithm 1). With a quantized base: Q-BLoRA."""
from torch import Tensor

from adapters.adapter import AdditiveAdapter
from adapters.lam import Lam
from adapters.lora import SCALINGS, low_rank_factors
from adapters.operators import OPERATORS


class BLoRA(AdditiveAdapter):
    """delta_W = scaling * R B A C, where B A has rank lam * r: as many parameters as LoRA of rank r. With the default
    operators, delta_W = scaling / lam * kron(B A, ones(lam, lam)).

    Differs from Algorithm 1, which scales and repeats the SUM of base and adapter. Here only the adapter's output is
    scaled and repeated, as the text of Sec. 3.2 says (erratum 2). Factors are (out, in) like nn.Linear's weights
    (erratum 3)."""
    name = "blora"
    options = ("lam", "rank", "lora_alpha", "scaling", "operators")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float, scaling: str = "lora",
                 operators: str = "avgpool"):
        super().__init__()
        if lam.lam_in != lam.lam_out:
            raise ValueError(f"lam {lam} is not possible with blora, whose one balancing factor applies to inputs, "
                             f"outputs and rank: give one number, such as --lam 2")
        self.lam, self.scaling, self.operators = lam, SCALINGS[scaling](lora_alpha, rank), OPERATORS[operators]
        self.A, self.B = low_rank_factors(D_out // lam.lam_out, D_in // lam.lam_in, rank * lam.lam_in)

    def core_factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B
