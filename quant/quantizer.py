"""The base class of quantizers: a name, the allowed bits, the usual block, and `fit`."""
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from quant.factors import DoubleQuantized, ZeroPoints
from quant.grid import Block, Grid, QuantizedWeight, split_blocks
from quant.packing import SUPPORTED_BITS
from quant.rounding import round_rows


class Quantizer(ABC):
    """Fits grids. A subclass writes `fit_blocks`.

    `fit` rounds scale and offset to the type `storage` before any code is chosen. With `double_quant` it rounds them to
    8 bits with a second level of factors (`DoubleQuantized`)."""
    name: str
    allowed_bits: tuple[int, ...] = SUPPORTED_BITS
    usual_block: Block
    usual_storage: torch.dtype

    def __init__(self, bits: int, block: Block, storage: torch.dtype | None = None, double_quant: bool = False):
        if bits not in self.allowed_bits:
            raise ValueError(f"bits={bits} is not possible with quantizer {self.name}; "
                             f"allowed: {', '.join(map(str, self.allowed_bits))}")
        if double_quant and self.usual_storage != torch.float32:
            raise ValueError(f"double quantization is for factors in float32, which quantizer {self.name} does not "
                             f"keep: use nf or icq")
        self.bits, self.block, self.double_quant = bits, block, double_quant
        self.storage = storage or self.usual_storage

    def fit(self, weight: Tensor, layer: str = "weight") -> Grid:
        """The grid of a weight (D_out, D_in).

        Raises ValueError, with the layer, if the block does not divide it, a weight is not finite, or the storage type
        cannot hold a scale or offset: it overflows, or underflows to 0 and loses a block (`check_underflow`)."""
        D_out, D_in = weight.shape
        self.block.check_divides(D_out, D_in, layer)
        block = self.block.in_layer(D_in)
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        try:
            levels, scale, offset = self.fit_blocks(split_blocks(wide, block))
            check_underflow(scale, scale.to(self.storage), len(levels), wide.abs().max())
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None
        kept_offset = offset if isinstance(offset, ZeroPoints) else self._kept(offset)
        grid = Grid(levels.to(weight.device), self._kept(scale), kept_offset, block, self.bits)
        if not all(factor.isfinite().all() for factor in grid.factors()):
            raise ValueError(f"layer {layer}: weights between {wide.min():.3g} and {wide.max():.3g} give a scale or "
                             f"offset that {self.storage} cannot hold")
        return grid

    def _kept(self, factor: Tensor) -> Tensor | DoubleQuantized:
        """The factor in the form that is stored."""
        factor = factor.to(self.storage)
        return DoubleQuantized.of(factor) if self.double_quant and factor.numel() > 1 else factor

    def quantize(self, weight: Tensor, layer: str = "weight") -> QuantizedWeight:
        """Fit, then round. Raises as `fit` does."""
        grid = self.fit(weight, layer)
        return QuantizedWeight(round_rows(weight, grid), grid)

    @abstractmethod
    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | ZeroPoints]:
        """(rows, n_out, columns, n_in) -> levels, scale and offset.

        levels (<= 2^bits,); scale (rows, columns); offset (rows, columns), or (1, 1), or zero points."""


LOST = 1e-3  # of the layer's largest weight; a block whose weights spread less may collapse into one value


def check_underflow(exact: Tensor, stored: Tensor, n_levels: int, largest: Tensor) -> None:
    """Raises ValueError if rounding a scale to its storage type makes it 0 and so loses the weights of a block.

    Two such blocks are no loss: one that is nearly constant, and one far smaller than the layer's largest weight.
    Weights below float32's normal numbers count as zeros.
    exact, stored: the scales before and after rounding; largest: max|w| of the layer."""
    spread = torch.where((exact != 0) & (stored == 0), exact.abs() * (n_levels - 1), 0).max()
    if spread > LOST * largest and spread > torch.finfo(torch.float32).tiny:
        raise ValueError(f"the weights of a block spread over {spread:.3g}, so its scale underflows to 0 in "
                         f"{stored.dtype} and the block would become one value; store scales in float32 (nf, icq), or "
                         f"keep the layer in 16 bits")


def block_ends(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """min w and max w of each block, both (rows, columns)."""
    return over_blocks(torch.amin, blocks), over_blocks(torch.amax, blocks)


def block_absmax(blocks: Tensor) -> Tensor:
    """max |w| of each block, (rows, columns)."""
    return over_blocks(torch.amax, blocks.abs())


def over_blocks(extreme: Callable[..., Tensor], blocks: Tensor) -> Tensor:
    """(rows, n_out, columns, n_in) -> (rows, columns). Over outputs first, along whole rows: the inner dimension is
    long then."""
    rows, n_out, columns, n_in = blocks.shape
    over_outputs = extreme(blocks.flatten(2), 1) if n_out > 1 else blocks
    return extreme(over_outputs.view(rows, columns, n_in), 2)
