"""The grid of a layer, rounding to it, and dequantizing (Shen et al., Eq. 1).

    W_hat = scale * levels[codes] + offset          block by block
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.factors import DoubleQuantized, ZeroPoints
from quant.one_pass import blockwise, dequantize_in_one_pass
from quant.packing import LookUp, word_shape


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
        return dequantize_packed(self.codes.flatten(), 8, tuple(self.codes.shape), self.grid, dtype)


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
    return (weight.to(wide) - offset.to(wide)) * inverse_of(scale.to(wide))


def inverse_of(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for a scale of 0 and for one so small that 1 / scale overflows."""
    inverse = 1 / scale
    return torch.where(inverse.isfinite(), inverse, 0)


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
    scale, offset = (per_block(factor.to(wide)) for factor in grid.factors())
    values = split_blocks(grid.levels.to(wide).index_select(0, codes.flatten().int()).view(codes.shape), grid.block)
    zero = inexact_zeros(grid)
    return join_blocks(blockwise(values, scale, offset, None if zero is None else per_block(zero))).to(dtype)


def inexact_zeros(grid: Grid) -> Tensor | None:
    """The zero point of each block, if scale * z is rounded in the offset; else None."""
    scale, _ = grid.factors()
    if isinstance(grid.offset, ZeroPoints) and scale.dtype not in (torch.float16, torch.bfloat16):
        return grid.offset.integers(scale.shape)
    return None


# ---- the same, fast -----------------------------------------------------------------------------------------------

AT_A_TIME = 1 << 18   # weights that a thread dequantizes at a time
ON_A_GPU = 1 << 26    # weights that a GPU dequantizes at a time: launching a kernel costs more than its memory
SHORT = 16            # inputs: a loop over so few costs more than one over a whole row


@torch.no_grad()
def dequantize_packed(packed: Tensor, bits: int, shape: tuple[int, ...], grid: Grid,
                      dtype: torch.dtype = torch.float32) -> Tensor:
    """`dequantize(unpack(packed, bits, shape), grid, dtype)`, the same bits, some rows at a time.

    Memory beyond the result is that of some rows and of a table. `bits` may be more than grid.bits: unpacked codes are
    codes of 8 bits. The result has no gradient."""
    if packed.is_cuda:
        factors = *grid.factors(), inexact_zeros(grid)
        weight = dequantize_in_one_pass(packed, bits, shape, grid.block.n_out, grid.levels, *factors, dtype)
        if weight is not None:
            return weight
    D_out, D_in = shape
    wide, (n_bytes, n_codes) = torch.promote_types(dtype, torch.float32), word_shape(bits)
    affine = Affine.of(grid, D_in, wide)
    unit = 8 * grid.block.n_out  # rows that are whole blocks and, at any bits, whole words
    at_once = AT_A_TIME * torch.get_num_threads() if packed.is_cpu else ON_A_GPU
    rows = min(unit * max(1, at_once // (unit * D_in)), -(-D_out // 8) * 8)
    step, look_up = rows * D_in, LookUp(grid.levels.to(wide), bits)
    result = packed.new_empty(len(packed) // n_bytes * n_codes, dtype=dtype)  # with the codes that pad the last word
    index = look_up.new_index(min(step, len(result)))
    values = None if dtype == wide else packed.new_empty(min(step, len(result)), dtype=wide)
    for first, part, codes in zip(range(0, D_out, rows), result.split(step),
                                  packed.split(step // n_codes * n_bytes), strict=True):
        found = part if values is None else values[:len(part)]
        look_up(codes, index, found)
        affine.apply_(found[:(D_out - first) * D_in], first // grid.block.n_out)
        if found is not part:
            part.copy_(found)
    return result[:D_out * D_in].view(shape)


@dataclass(frozen=True)
class Affine:
    """scale * values + offset, in place, for some rows of a layer. With `zero`, 0 where a value is its zero point.

    `dequantize` multiplies and adds with one rounding, by a fused operation that is slow on a CPU unless both factors
    are spread over whole rows. A multiplication and an addition give the same bits where the product is exact, and a
    multiplication alone does where the offset is 0."""
    scale: Tensor
    offset: Tensor | None
    n_in: int
    n_out: int
    fused: bool
    zero: Tensor | None = None

    @classmethod
    def of(cls, grid: Grid, D_in: int, wide: torch.dtype) -> "Affine":
        scale, offset = (factor.to(wide) for factor in grid.factors())
        n_in, n_out, zero = D_in // scale.shape[1], grid.block.n_out, inexact_zeros(grid)
        if not scale.is_cpu or zero is not None:
            return cls(scale, offset, n_in, n_out, fused=True, zero=zero)
        if scale.min() > 0 and not offset.any():
            return cls(scale, None, n_in, n_out, fused=False)
        exact = isinstance(grid.scale, Tensor) and grid.scale.dtype in (torch.float16, torch.bfloat16) \
            and torch.equal(grid.levels, grid.levels.round())  # 11 bits times at most 8
        return cls(scale, offset, n_in, n_out, fused=not exact)

    def apply_(self, values: Tensor, first: int) -> None:
        """For the values, flat, of rows of a layer from row `first` of blocks on."""
        columns, over_rows = self.scale.shape[1], self.n_in < SHORT or (self.fused and values.is_cpu)
        within = (columns * self.n_in,) if over_rows else (columns, self.n_in)
        blocks = values.view(-1, self.n_out, *within)

        def spread(factor: Tensor) -> Tensor:
            part = factor if len(factor) == 1 else factor[first:first + len(blocks)]
            return per_input(part, self.n_in) if over_rows else per_block(part)
        scale = spread(self.scale)
        at_zero = None if self.zero is None else blocks == spread(self.zero)
        if self.offset is None:
            blocks.mul_(scale)
        elif self.fused:
            torch.addcmul(spread(self.offset), scale, blocks, out=blocks)
        else:
            blocks.mul_(scale).add_(spread(self.offset))
        if at_zero is not None:
            blocks.masked_fill_(at_zero, 0)


def per_input(factor: Tensor, n_in: int) -> Tensor:
    """One value for each input, (rows, columns) -> (rows, 1, columns * n_in), so that the inner dimension is long."""
    return factor[:, None] if factor.numel() == 1 else factor[:, :, None].expand(-1, -1, n_in).flatten(1)[:, None]
