"""Integer min-max: the offset is -scale * z, with z an integer of the grid. GPTQ's released code, stock GPTQ files and
PEQA use this grid (Frantar et al. 2022; Kim et al. 2023)."""
import torch
from torch import Tensor

from quant.factors import ZeroPoints
from quant.grid import Block
from quant.quantizer import Quantizer, block_ends, check_underflow


class IntegerMinMax(Quantizer):
    """The range is widened to hold 0;  scale = (max - min) / (2^N - 1);  z = round(-min / scale);  offset = -scale * z.

    Zero weights come back as exact zeros, because z is a level. A block of one constant c has scale |c|, so c is a
    level too. Every scale is positive: a block of zeros has scale 1 and z = 0. So has a block of weights too small for
    the storage type, beside much larger ones; a whole layer of such weights is refused."""
    name = "intminmax"
    usual_block = Block(32, 1)
    usual_storage = torch.float16

    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, ZeroPoints]:
        low, high = block_ends(blocks)
        steps = 2 ** self.bits - 1
        scale = torch.where(low == high, high.abs(), (high.clamp(min=0) - low.clamp(max=0)) / steps)
        exact, scale = scale, scale.to(self.storage).to(low.dtype)  # z is chosen for the stored scale
        check_underflow(exact, scale.to(self.storage), steps + 1, blocks.abs().max())
        zero = torch.where(scale > 0, -low.clamp(max=0) / scale, 0).round().clamp(0, steps)
        scale = torch.where(scale == 0, 1, scale)
        return torch.arange(steps + 1, dtype=torch.float32), scale, ZeroPoints.of(zero, self.bits)
