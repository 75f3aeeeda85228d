"""The grid of a layer, rounding to it, and dequantizing (Shen et al., Eq. 1).

    W_hat = scale * levels[codes] + offset          block by block
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.factors import DoubleQuantized, ZeroPoints


@dataclass(frozen=True)
class Block:
    """n_in inputs x n_out outputs: lambda_1 x lambda_2. `Block.parse("4x8") == Block(4, 8)`. `Block.parse("rowx1")`
    means all inputs of a layer: n_in is None until `in_layer` fills in their number."""
    n_in: int | None
    n_out: int

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Raises ValueError unless `text` is two positive integers joined by an x. The first may be `row`."""
        n_in, _, n_out = text.lower().partition("x")
        if not all(part.isdecimal() and int(part) > 0 for part in (n_in if n_in != "row" else "1", n_out)):
            raise ValueError(f"block {text!r} is not of the form n_in x n_out: give 4x8, 64x1, or rowx1 for whole rows")
        return cls(None if n_in == "row" else int(n_in), int(n_out))

    def __str__(self) -> str:
        return f"{self.n_in or 'row'}x{self.n_out}"

    def in_layer(self, D_in: int) -> "Block":
        """The block in a layer with D_in inputs, with n_in as a number."""
        return self if self.n_in else Block(D_in, self.n_out)

    def check_divides(self, D_out: int, D_in: int, layer: str) -> None:
        """Raises ValueError, with the layer and the sizes, unless whole blocks cover the layer."""
        if D_in % (self.n_in or D_in) or D_out % self.n_out:
            raise ValueError(f"block {self} (n_in x n_out) does not divide layer {layer} with D_in={D_in}, "
                             f"D_out={D_out}; n_in must divide D_in and n_out must divide D_out")


@dataclass(frozen=True)
class Grid:
    """The values that codes stand for. `bits` is the size of a code, at least log2(len(levels))."""
    levels: Tensor                    # (<= 2^bits,), ascending
    scale: Tensor | DoubleQuantized   # (D_out/n_out, D_in/n_in)
    offset: Tensor | DoubleQuantized | ZeroPoints  # as scale, or (1, 1) if the layer shares one
    block: Block
    bits: int

    def factors(self) -> tuple[Tensor, Tensor]:
        """scale and offset as plain tensors, whatever form they are stored in."""
        scale = self.scale() if isinstance(self.scale, DoubleQuantized) else self.scale
        if isinstance(self.offset, ZeroPoints):
            return scale, self.offset(scale)
        return scale, self.offset() if isinstance(self.offset, DoubleQuantized) else self.offset


@dataclass(frozen=True)
class QuantizedWeight:
    """The terms of Eq. 1 for one layer."""
    codes: Tensor  # (D_out, D_in), uint8
    grid: Grid

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return dequantize(self.codes, self.grid, dtype)


def split_blocks(weight: Tensor, block: Block) -> Tensor:
    """(D_out, D_in) -> (D_out/n_out, n_out, D_in/n_in, n_in); dimensions 1 and 3 together are one block."""
    return weight.unflatten(1, (-1, block.n_in)).unflatten(0, (-1, block.n_out))


def join_blocks(blocks: Tensor) -> Tensor:
    """The inverse of `split_blocks`."""
    return blocks.flatten(2, 3).flatten(0, 1)


def per_block(factor: Tensor) -> Tensor:
    """One value for each block, (rows, columns) -> (rows, 1, columns, 1), to broadcast with `split_blocks`."""
    return factor[:, None, :, None]


def normalise(weight: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """(w - offset) / scale, in the wider of float32 and the weight's type: the position of w among the levels.

    Multiplies by 1/scale, as bitsandbytes does. A block of scale 0 gives 0."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    inverse = 1 / scale.to(wide)
    inverse = torch.where(inverse.isfinite(), inverse, 0)  # scale 0, or so small that 1/scale overflows
    return (weight.to(wide) - offset.to(wide)) * inverse


def round_to_grid(weight: Tensor, grid: Grid) -> Tensor:
    """codes = the nearest level to (w - offset) / scale; a tie goes to the lower code. uint8, (D_out, D_in)."""
    scale, offset = map(per_block, grid.factors())
    normalised = normalise(split_blocks(weight, grid.block), scale, offset)
    levels = grid.levels.to(normalised.dtype)
    return join_blocks(torch.bucketize(normalised, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8))


def dequantize(codes: Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """W_hat = scale * levels[codes] + offset, (D_out, D_in). Computed in the wider of float32 and `dtype`.

    A weight whose level is its zero point is 0. The formula gives 0 for float16 scales, whose products are exact. For
    float32 scales, as PEQA trains them, scale * z is rounded in the offset but not in a fused multiply-add, and the
    difference would stay. Here it is set to 0."""
    wide = torch.promote_types(dtype, torch.float32)
    exact_scale, exact_offset = grid.factors()
    scale, offset = (per_block(factor.to(wide)) for factor in (exact_scale, exact_offset))
    values = split_blocks(grid.levels.to(wide).index_select(0, codes.flatten().int()).view(codes.shape), grid.block)
    weight = torch.addcmul(offset, scale, values)
    if isinstance(grid.offset, ZeroPoints) and exact_scale.dtype not in (torch.float16, torch.bfloat16):
        weight.masked_fill_(values == per_block(grid.offset.integers(exact_scale.shape)), 0)
    return join_blocks(weight).to(dtype)
