"""What an adapter is, and the one equation of all additive adapters.

A new method subclasses `AdditiveAdapter` and writes four things: `name`, `options`, `__init__` and `core_factors`.
"""
from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from adapters.lam import Lam
from adapters.operators import AvgPool, Operators


class Adapter(nn.Module):
    """The facts about a method that the rest of the program asks for."""
    name: ClassVar[str]                   # its key in ADAPTERS
    options: ClassVar[tuple[str, ...]]    # constructor arguments besides D_out and D_in; the command line supplies them
    additive: ClassVar[bool]              # whether the adapted layer is base(x) + delta(x)
    merges_into: str                      # what a merge into k bits replaces in the base (`merge.py`)
    layer: type[AdaptedLinear]            # the layer that holds a base and this adapter; `rounded.py` changes both
    only_here: ClassVar[str] = ""         # of an adapter that is not additive: why it says nothing beside another base

    @property
    def tile(self) -> Lam | None:
        """The largest rectangle on which delta_W is constant; None if the adapter is not additive."""
        return None


class AdditiveAdapter(Adapter):
    """delta_W = scaling * R core C,   delta(x) = x @ delta_W.T         (Shen et al., Eq. 2 and Table 6)

    C compresses groups of lam_in inputs and R restores groups of lam_out outputs (`operators.py`). With the default
    operators, delta_W = scaling / lam_in * kron(core, ones(lam_out, lam_in)).

    A subclass sets `scaling`, and `lam` and `operators` if it compresses. `core_factors` returns A and B of core = B A.
    A core that is cheaper in another form overrides `core` and `core_weight` as well."""
    additive, merges_into, layer = True, "offset", AdaptedLinear
    lam: Lam = Lam(1, 1)
    scaling: float = 1.0
    operators: type[Operators] = AvgPool

    @abstractmethod
    def core_factors(self) -> tuple[Tensor, Tensor]:
        """A (R, D_in/lam_in) and B (D_out/lam_out, R) of core = B A."""

    def core_weight(self) -> Tensor:
        """The dense core, (D_out/lam_out, D_in/lam_in)."""
        A, B = self.core_factors()
        return B @ A

    def core(self, x: Tensor) -> Tensor:
        """x @ core.T: (..., D_in/lam_in) -> (..., D_out/lam_out), in the type of x."""
        A, B = self.core_factors()
        return x @ A.T.to(x.dtype) @ B.T.to(x.dtype)

    @property
    def tile(self) -> Lam:
        return self.operators.tile(self.lam)

    def delta(self, x: Tensor) -> Tensor:
        """The cheap path that training uses: (..., D_in) -> (..., D_out)."""
        compressed = self.operators.compress(x, self.lam.lam_in)
        return self.operators.restore(self.scaling * self.core(compressed), self.lam.lam_out)

    def delta_weight(self) -> Tensor:
        """The dense matrix that `delta` multiplies by, (D_out, D_in)."""
        return self.scaling * self.operators.expand(self.core_weight(), self.lam)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """A C, (R, D_in), and R B, (D_out, R): the factors of the plain LoRA that this adapter equals.

        delta_W = scaling * (R B) (A C)."""
        A, B = self.core_factors()
        lam_in, lam_out = self.lam.lam_in, self.lam.lam_out
        return self.operators.expand(A, Lam(lam_in, 1)), self.operators.expand(B, Lam(1, lam_out))
