"""What the formats have in common: a layer is some tensors with one name, `NAME.part`."""
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from quant.grid import Block
from quant.linear import QuantLinear
from quant.packing import packed_bytes

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Stated:
    """The sizes of a stored layer."""
    D_out: int
    D_in: int
    bits: int
    block: Block

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the buffers of the `QuantLinear` that holds it."""
        self.block.check_divides(self.D_out, self.D_in, "")
        factors = (self.D_out // self.block.n_out, self.D_in // (self.block.n_in or self.D_in))
        return {"codes": (packed_bytes(self.D_out * self.D_in, self.bits),), "levels": (2 ** self.bits,),
                "scale": factors, "offset": factors}


class StoredFormat(ABC):
    """One way of storing quantized layers, with the settings of one config.json."""
    name: ClassVar[str]
    parts: ClassVar[dict[str, tuple[str, ...]]]  # suffix of a layer's tensor -> types that safetensors may hold it in

    @classmethod
    @abstractmethod
    def of(cls, config: dict) -> "StoredFormat | None":
        """The settings that config.json states; None if it states another format."""

    @abstractmethod
    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]]) -> Stated:
        """The sizes of a layer, from the shapes of its parts. Raises ValueError, with the layer, if they do not fit
        each other or the settings."""

    @abstractmethod
    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        """The layer, its codes and factors as stored."""


    # ---- writing: formats that cannot be written leave these out

    @classmethod
    def setting_for(cls, levels: Tensor, bits: int, block: Block) -> Any:
        """The sizes in which the format holds every weight on such a grid. Raises ValueError with what does not fit."""
        raise NotImplementedError(f"{cls.name} is read only")

    @classmethod
    def config_of(cls, settings: dict[str, Any]) -> dict:
        """What config.json states of layers with these sizes."""
        raise NotImplementedError(f"{cls.name} is read only")

    @classmethod
    def write(cls, layer: QuantLinear, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The parts of a layer. Only the factors may be rounded, to `dtype`. None: to no smaller type than holds them.
        Raises ValueError as `setting_for`, and for factors that `dtype` cannot hold."""
        raise NotImplementedError(f"{cls.name} is read only")


def levels_of(bits: int) -> Tensor:
    """0 .. 2^bits - 1"""
    return torch.arange(2 ** bits, dtype=torch.float32)


def affine_low(levels: Tensor) -> int:
    """The first of levels that are consecutive whole numbers. Raises ValueError for others, such as NormalFloat's."""
    low = int(levels[0])
    if not torch.equal(levels, torch.arange(low, low + len(levels), dtype=levels.dtype, device=levels.device)):
        raise ValueError(f"levels that are no whole numbers ({levels[0]:.4g}, {levels[1]:.4g}, ...) are not affine: no "
                         f"scale * code + offset gives them")
    return low


def affine_factors(layer: QuantLinear) -> tuple[Tensor, Tensor]:
    """scale and offset for codes that count from 0, float32: offset + scale * low."""
    scale, offset = (factor.float() for factor in layer.grid.factors())
    return scale, torch.addcmul(offset, scale, scale.new_tensor(affine_low(layer.levels)))


def in_one_type(factors: dict[str, Tensor], layer: QuantLinear, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The factors in `dtype`. None: in the type of the layer's scale, if that holds all of them exactly, else in
    float32. Raises ValueError for factors beyond the type."""
    own = layer.scale.dtype if isinstance(layer.scale, Tensor) else torch.float32
    exact = all(torch.equal(factor.to(own).float(), factor) for factor in factors.values())
    kind = dtype or (own if exact else torch.float32)
    for name, factor in factors.items():
        if not factor.to(kind).isfinite().all():
            raise ValueError(f"{name} up to {factor.abs().max():.4g} are beyond {kind}: give --dtype float32")
    return {name: factor.to(kind) for name, factor in factors.items()}
