"""What the formats have in common: a layer is some tensors with one name, `NAME.part`."""
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.factors import ZeroPoints
from quant.grid import Block
from quant.linear import QuantLinear
from quant.packing import pack, packed_bytes, unpack

FLOATS = ("F32", "F16", "BF16")
EACH, INTEGER, NONE = "one for each block", "an integer zero point for each block", "0 everywhere"  # kinds of offset
CONFIG = "quantization_config"  # the key of config.json
GROUPS = (128, 64, 32)  # inputs that share a scale, as engines have kernels for


@dataclass(frozen=True)
class Stated:
    """The sizes of a stored layer."""
    D_out: int
    D_in: int
    bits: int
    block: Block
    offset: str = EACH
    levels: Tensor | None = None  # None: 0 .. 2^bits - 1

    def values(self) -> Tensor:
        """The levels."""
        return levels_of(self.bits) if self.levels is None else self.levels

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the buffers of the `QuantLinear` that holds it."""
        self.block.check_divides(self.D_out, self.D_in, "")
        factors = (self.D_out // self.block.n_out, self.D_in // (self.block.n_in or self.D_in))
        offset: dict[str, dict[str, tuple[int, ...]]] = {
            EACH: {"offset": factors}, NONE: {"offset": (1, 1)},
            INTEGER: {"offset.zero": (packed_bytes(factors[0] * factors[1], self.bits),)}}
        return {"codes": (packed_bytes(self.D_out * self.D_in, self.bits),), "levels": tuple(self.values().shape),
                "scale": factors, **offset[self.offset]}


def stated_of(layer: QuantLinear) -> Stated:
    """The sizes of a layer, its block as two numbers. Zero points that are all 2^(bits - 1), as in most GPTQ files, are
    stated as the symmetric grid that they are: no offset, levels from -2^(bits - 1)."""
    levels, scale, half = layer.levels, layer.grid.factors()[0], 2 ** (layer.bits - 1)
    if isinstance(layer.offset, ZeroPoints):
        symmetric = bool((layer.offset.integers(scale.shape) == half).all())
        offset, levels = (NONE, levels - half) if symmetric else (INTEGER, levels)
    else:
        offset = NONE if isinstance(layer.offset, Tensor) and layer.offset.shape == (1, 1) else EACH
    block = layer.block.in_layer(layer.in_features)
    return Stated(layer.out_features, layer.in_features, layer.bits, block, offset, levels)


class StoredFormat(ABC):
    """One way of storing quantized layers, with the settings of one config.json."""
    name: ClassVar[str]
    parts: ClassVar[dict[str, tuple[str, ...]]]  # suffix of a layer's tensor -> types that safetensors may hold it in
    optional: ClassVar[dict[str, tuple[str, ...]]] = {}  # parts that a layer may lack
    small: ClassVar[tuple[str, ...]] = ()  # parts of few bytes whose values tell a layer's sizes
    real_offsets: ClassVar[bool] = True    # False: its offsets are integers

    @classmethod
    @abstractmethod
    def of(cls, config: dict) -> "StoredFormat | None":
        """The settings that config.json states; None if it states another format."""

    @abstractmethod
    def stated(self, layer: str, shapes: dict[str, tuple[int, ...]], small: Mapping[str, Tensor]) -> Stated:
        """The sizes of a layer, from the shapes of its parts and the values of the small ones. Raises ValueError, with
        the layer, if they do not fit each other or the settings."""

    @abstractmethod
    def read(self, stated: Stated, parts: dict[str, Tensor]) -> QuantLinear:
        """The layer, its codes and factors as stored."""

    def layer(self, name: str, parts: dict[str, Tensor]) -> QuantLinear:
        """The layer that all of these parts are."""
        shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        return self.read(self.stated(name, shapes, {part: parts[part] for part in self.small if part in parts}), parts)

    # ---- writing: formats that cannot be written leave these out

    @classmethod
    def setting_for(cls, stated: Stated) -> Any:
        """How the format holds a layer of these sizes, its block as two numbers. Raises ValueError with what does not
        fit."""
        raise NotImplementedError(f"{cls.name} is read only")

    @classmethod
    def config_of(cls, settings: dict[str, Any], dense: Sequence[str] = ()) -> dict:
        """What config.json states of these layers, and of linear layers that stay dense. Raises ValueError if one
        model cannot hold them all."""
        raise NotImplementedError(f"{cls.name} is read only")

    def write(self, name: str, layer: QuantLinear, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The parts of a layer that `config_of` states. Only the factors may be rounded, to `dtype`. None: to the
        format's usual type. Raises ValueError for offsets that the format does not hold, and for factors that the type
        cannot hold."""
        raise NotImplementedError(f"{self.name} is read only")


def settings_by(method: str, config: dict) -> dict | None:
    """The quantization_config that names this method; None without one."""
    stated = config.get(CONFIG)
    return stated if isinstance(stated, dict) and stated.get("quant_method") == method else None


def one_of(stated: dict, key: str, allowed: Collection, where: str = CONFIG, usual: Any = None) -> Any:
    """A setting. Raises ValueError, naming the key, for a value that is not read."""
    value = stated.get(key, usual)
    if not any(value == each and type(value) is type(each) for each in allowed):
        raise ValueError(f"{where}: {key} is {str(value)[:60]}, but only {', '.join(map(str, allowed))} "
                         f"{'is' if len(allowed) == 1 else 'are'} read")
    return value


def group_size(stated: dict, where: str = CONFIG) -> int | None:
    """Inputs that share a scale; None for all of them, which is stated as -1. Raises ValueError for other values."""
    size = stated.get("group_size")
    if type(size) is not int or not (size == -1 or 0 < size < 1 << 20):
        raise ValueError(f"{where}: group_size is {str(size)[:60]}, but must be a number of inputs, or -1 for all")
    return None if size == -1 else size


def group_of(block: Block) -> int | None:
    """The largest of GROUPS that divides the block's inputs: `group_of(Block(192, 8)) == 64`; None for 16x1."""
    return next((size for size in GROUPS if block.n_in and block.n_in % size == 0), None)


def check_shapes(layer: str, shapes: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Raises ValueError, with the layer and the part, for a part that has another shape."""
    for part, shape in wanted.items():
        if shapes[part] != shape:
            raise ValueError(f"{layer}: {part} has the shape {list(shapes[part])}, but {what} take {list(shape)}")


def check_order(layer: str, groups: Tensor | None, D_in: int, n_in: int) -> None:
    """Raises ValueError, with the layer, unless group i holds the inputs n_in * i .. n_in * (i + 1) - 1.

    groups: the group of each input, `g_idx`. Codes that were chosen in the order of activations may come in another
    order; a block of Eq. 1 is neighbouring inputs."""
    if groups is None or tuple(groups.shape) == (D_in,) and torch.equal(groups.long(), torch.arange(D_in) // n_in):
        return
    raise ValueError(f"{layer}: g_idx, of the shape {list(groups.shape)}, does not put {D_in} inputs into groups of "
                     f"{n_in} neighbours (desc_act, act-order): not read; give a checkpoint that was made with "
                     f"desc_act false")


def unpack_rows(words: Tensor, bits: int, n: int) -> Tensor:
    """int32 words, the first code in the lowest bits -> uint8 codes, (rows, n)."""
    words = F.pad(words, (0, -words.shape[1] % bits)).contiguous()  # `bits` words are 32 codes
    return unpack(words.flatten().view(torch.uint8), bits, (len(words), words.shape[1] * 32 // bits))[:, :n]


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack_rows`: each row is padded with zeros to whole words."""
    rows = F.pad(codes, (0, -codes.shape[1] % 32))  # 32 codes are whole words at any bits
    return pack(rows, bits).view(len(rows), -1).view(torch.int32)[:, :-(-codes.shape[1] * bits // 32)].contiguous()


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


def smallest_type(factors: dict[str, Tensor], layer: QuantLinear) -> torch.dtype:
    """The type of the layer's scale, if that holds all of these factors exactly, else float32."""
    own = layer.scale.dtype if isinstance(layer.scale, Tensor) else torch.float32
    exact = all(torch.equal(factor.to(own).float(), factor) for factor in factors.values())
    return own if exact else torch.float32


def of_16_bits(layer: QuantLinear) -> torch.dtype:
    """The type of the layer's scale, if that has 16 bits, else float16."""
    own = layer.scale.dtype if isinstance(layer.scale, Tensor) else torch.float32
    return own if own.itemsize == 2 else torch.float16


def in_type(factors: dict[str, Tensor], kind: torch.dtype) -> dict[str, Tensor]:
    """The factors, rounded. Raises ValueError for factors beyond the type."""
    for name, factor in factors.items():
        if not factor.to(kind).isfinite().all():
            raise ValueError(f"{name} up to {factor.abs().max():.4g} are beyond {kind}: give --dtype float32")
    return {name: factor.to(kind) for name, factor in factors.items()}
