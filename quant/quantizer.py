"""What every quantizer offers: a name, the bits it takes, its usual block, and `fit`."""
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from quant.grid import Block, Grid, QuantizedWeight, round_to_grid, split_blocks
from quant.packing import SUPPORTED_BITS


class Quantizer(ABC):
    """Scale and offset are rounded to `storage` by `fit`, that is before any code is chosen."""
    name: str
    allowed_bits: tuple[int, ...] = SUPPORTED_BITS
    usual_block: Block

    def __init__(self, bits: int, block: Block, storage: torch.dtype | None = None):
        if bits not in self.allowed_bits:
            raise ValueError(f"bits={bits} is not possible with quantizer {self.name}; "
                             f"allowed: {', '.join(map(str, self.allowed_bits))}")
        self.bits, self.block = bits, block
        self.storage = storage or self.usual_storage

    usual_storage: torch.dtype

    def fit(self, weight: Tensor, layer: str = "weight") -> Grid:
        """The grid of a weight (D_out, D_in).

        Raises ValueError, naming `layer`, for a block that does not divide it, a weight that is not finite, or one whose
        scale or offset the storage type cannot hold."""
        self.block.check_divides(*weight.shape, layer)
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        levels, scale, offset = self.fit_blocks(split_blocks(wide, self.block))
        scale, offset = scale.to(self.storage), offset.to(self.storage)
        if not (scale.isfinite().all() and offset.isfinite().all()):
            raise ValueError(f"layer {layer}: weights between {wide.min():.3g} and {wide.max():.3g} give a scale or "
                             f"offset that {self.storage} cannot hold")
        return Grid(levels.to(weight.device), scale, offset, self.block, self.bits)

    def quantize(self, weight: Tensor, layer: str = "weight") -> QuantizedWeight:
        """Fit, then round. Raises as `fit` does."""
        grid = self.fit(weight, layer)
        return QuantizedWeight(round_to_grid(weight, grid), grid)

    @abstractmethod
    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, n_out, columns, n_in) -> levels (<= 2^bits,), scale (rows, columns), offset (rows, columns) or (1, 1)."""


def block_absmax(blocks: Tensor) -> Tensor:
    """max |w| of each block, (rows, columns)."""
    return blocks.abs().amax(dim=(1, 3))
