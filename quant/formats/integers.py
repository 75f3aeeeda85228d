"""What formats with integer zeros hold.

    W_hat = scale * (codes - zeros),   codes and zeros 0 .. 2^bits - 1,   groups of inputs x 1 output
"""
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.factors import ZeroPoints
from quant.formats.stored import GROUPS, NONE, Stated, affine_low, group_of
from quant.linear import QuantLinear
from quant.packing import SUPPORTED_BITS


@dataclass(frozen=True)
class IntegerSetting:
    """How a layer may be stored, by its sizes alone."""
    bits: int
    group: int | None  # the largest of GROUPS into which its blocks fall, if any
    whole_rows: bool   # one block holds all inputs of its outputs
    symmetric: bool    # each zero is 2^(bits - 1)

    @classmethod
    def of(cls, stated: Stated, name: str, allowed: Collection[int]) -> "IntegerSetting":
        """Raises ValueError for bits, levels or blocks that have no place in the format `name`."""
        low = affine_low(stated.values())
        if stated.bits not in allowed:
            raise ValueError(f"{stated.bits} bits have no place in {name}, which has {', '.join(map(str, allowed))}: "
                             f"give one of these to --bits, or use compressed-tensors, which has "
                             f"{', '.join(map(str, SUPPORTED_BITS))}")
        group, whole = group_of(stated.block), stated.block.n_in == stated.D_in
        if not (group or whole):
            raise ValueError(f"blocks of {stated.block} (n_in x n_out) do not fall into groups of "
                             f"{', '.join(map(str, sorted(GROUPS)))} inputs x 1 output, nor into whole rows")
        return cls(stated.bits, group, whole, symmetric=stated.offset == NONE and low < 0)


@dataclass(frozen=True)
class Integers:
    """A layer as the equation above."""
    codes: Tensor  # (D_out, D_in), uint8
    zeros: Tensor  # (D_out, D_in / group_size), uint8
    scale: Tensor  # as zeros

    @classmethod
    def of(cls, layer: QuantLinear, group_size: int | None, symmetric: bool) -> "Integers":
        """group_size: None for all inputs. A block of several outputs, or of more inputs than a group, becomes several
        groups. Levels that begin below 0 count from -2^(bits - 1). Raises ValueError for an offset that is no such
        zero, or, if symmetric, not 2^(bits - 1)."""
        (n_in, n_out), half, low = layer.block_size, 2 ** (layer.bits - 1), affine_low(layer.levels)
        scale, _ = layer.grid.factors()
        shift = half + low if low < 0 else 0
        zeros = (integer_zeros(layer) + shift).expand_as(scale)
        if symmetric and not (zeros == half).all():
            raise ValueError("its offset is not 0, as that of a symmetric grid is")
        times = n_in // (group_size or n_in)
        groups = (factor.repeat_interleave(n_out, 0).repeat_interleave(times, 1) for factor in (zeros, scale))
        return cls(layer.quantized_weight().codes + shift, *groups)


def integer_zeros(layer: QuantLinear) -> Tensor:
    """z with offset + scale * low = -scale * z, exactly, uint8, as the offset or (1, 1). low: the first level. Raises
    ValueError if there are no such integers 0 .. 2^bits - 1."""
    scale, offset = (factor.double() for factor in layer.grid.factors())
    low = affine_low(layer.levels)
    if isinstance(layer.offset, ZeroPoints):
        zeros = layer.offset.integers(scale.shape).double()
    else:
        zeros = torch.where(scale == 0, 0, -offset / scale).round() if offset.any() else offset.new_zeros(1, 1)
        if not torch.equal(-scale * zeros, offset.expand_as(scale)):
            wrong = (-scale * zeros != offset).sum()
            raise ValueError(f"{wrong} of {scale.numel()} offsets are no whole multiples of their scales, and only "
                             f"integer zeros have a place: quantize with intminmax or absmax, or export to mlx or "
                             "gguf, which hold real offsets")
    zeros = zeros - low
    if zeros.min() < 0 or zeros.max() >= 2 ** layer.bits:
        raise ValueError(f"zeros from {int(zeros.min())} to {int(zeros.max())} are beyond 0 .. {2 ** layer.bits - 1}")
    return zeros.to(torch.uint8)
