"""IR-QLoRA's adapter with information elastic connections, IEC (Qin et al. 2024)."""
import torch
from torch import Tensor, nn

from adapters.adapter import AdditiveAdapter
from adapters.lam import Lam, group_mean, repeat_each
from adapters.lora import SCALINGS, low_rank_factors


class IRQLoRA(AdditiveAdapter):
    """delta_W = scaling * (B + iec_b R) (A + iec_a P): LoRA with a shortcut around each of its factors,

        h = A x + iec_a * P x,   y = scaling * (B h + iec_b * R h).

    P (rank, D_in) takes the mean of each of `rank` chunks of inputs. R (D_out, rank) repeats each of `rank` numbers
    over its chunk of outputs. P and R do not train. The two scalars start at 0.

    Differs from Shen et al., Sec. 2, which says that IEC "prevents lossless merging" (erratum 7). Both shortcuts are
    linear, so the adapter merges exactly, to 16 bits. Merging B A alone would lose the shortcuts."""
    name = "irqlora"
    options = ("lam", "rank", "lora_alpha", "scaling")

    def __init__(self, D_out: int, D_in: int, lam: Lam, rank: int, lora_alpha: float, scaling: str = "lora"):
        super().__init__()
        if lam != Lam(1, 1):
            raise ValueError(f"lam {lam} is not possible with irqlora: only 1x1 is")
        if D_in % rank or D_out % rank:
            raise ValueError(f"rank {rank} does not divide both D_in={D_in} and D_out={D_out}: irqlora cuts inputs and "
                             f"outputs into `rank` chunks, so choose a rank that divides both")
        self.rank, self.scaling = rank, SCALINGS[scaling](lora_alpha, rank)
        self.A, self.B = low_rank_factors(D_out, D_in, rank)
        self.iec_a, self.iec_b = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    def core(self, x: Tensor) -> Tensor:
        A, B, iec_a, iec_b = (p.to(x.dtype) for p in (self.A, self.B, self.iec_a, self.iec_b))
        h = x @ A.T + iec_a * group_mean(x, x.shape[-1] // self.rank)
        return h @ B.T + iec_b * repeat_each(h, len(B) // self.rank)

    def core_factors(self) -> tuple[Tensor, Tensor]:
        """A + iec_a P (rank, D_in) and B + iec_b R (D_out, rank)."""
        chunks = torch.eye(self.rank, dtype=self.A.dtype, device=self.A.device)
        D_out, D_in = len(self.B), self.A.shape[1]
        P = chunks.repeat_interleave(D_in // self.rank, dim=1) * (self.rank / D_in)
        R = chunks.repeat_interleave(D_out // self.rank, dim=0)
        return self.A + self.iec_a * P, self.B + self.iec_b * R
