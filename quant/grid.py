"""Eq. 1 of blora.txt: the grid of a layer, rounding to it, and back.

    W_hat = scale * levels[codes] + offset          block by block
"""
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """n_in inputs x n_out outputs: lambda_1 x lambda_2. `Block.parse("4x8") == Block(4, 8)`."""
    n_in: int
    n_out: int

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Raises ValueError unless `text` is two positive integers with an x between them."""
        parts = text.lower().split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"block {text!r} is not of the form n_in x n_out, as in 4x8 or 64x1")
        return cls(int(parts[0]), int(parts[1]))

    def __str__(self) -> str:
        return f"{self.n_in}x{self.n_out}"

    def check_divides(self, D_out: int, D_in: int, layer: str) -> None:
        """Raises ValueError, naming the layer and the sizes, unless the layer falls into whole blocks."""
        if D_in % self.n_in or D_out % self.n_out:
            raise ValueError(f"block {self} (n_in x n_out) does not divide layer {layer} with D_in={D_in}, D_out={D_out}; "
                             f"n_in must divide D_in and n_out must divide D_out")


@dataclass(frozen=True)
class Grid:
    """What `codes` are rounded to. `bits` says how many bits a code takes, at least log2(len(levels))."""
    levels: Tensor  # (<= 2^bits,), ascending
    scale: Tensor   # (D_out/n_out, D_in/n_in)
    offset: Tensor  # the same, or (1, 1)
    block: Block
    bits: int


@dataclass(frozen=True)
class QuantizedWeight:
    """A layer's weight as Eq. 1 has it."""
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
    """(rows, columns) of one value a block -> (rows, 1, columns, 1), to meet what `split_blocks` returns."""
    return factor[:, None, :, None]


def round_to_grid(weight: Tensor, grid: Grid) -> Tensor:
    """codes = the nearest level of (w - offset) / scale; a tie goes to the lower code. uint8, (D_out, D_in).

    Normalises by multiplying with 1/scale, in the wider of float32 and the weight's type, as bitsandbytes does.
    A block without spread (scale 0) takes the level nearest to 0.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    inverse = 1 / per_block(grid.scale.to(wide))
    inverse = torch.where(inverse.isfinite(), inverse, 0)  # scale 0, or so small that only 0 is left of it
    normalised = (split_blocks(weight.to(wide), grid.block) - per_block(grid.offset.to(wide))) * inverse
    midpoints = (grid.levels[1:].to(wide) + grid.levels[:-1].to(wide)) / 2
    return join_blocks(torch.bucketize(normalised, midpoints, out_int32=True).to(torch.uint8))


def dequantize(codes: Tensor, grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """W_hat = scale * levels[codes] + offset, (D_out, D_in). Computed in the wider of float32 and `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    values = grid.levels.to(wide).index_select(0, codes.flatten().int()).view(codes.shape)
    blocks = split_blocks(values, grid.block)
    return join_blocks(torch.addcmul(per_block(grid.offset.to(wide)), per_block(grid.scale.to(wide)), blocks)).to(dtype)
