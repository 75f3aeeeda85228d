"""Min-max: the grid's ends are the block's smallest and largest weight (Shen et al., Sec. 3.1, below Eq. 1)."""
import torch
from torch import Tensor

from quant.grid import Block
from quant.quantizer import Quantizer, block_ends


class MinMax(Quantizer):
    """scale = (max - min) / (2^N - 1);  offset = min;  levels = 0 .. 2^N - 1."""
    name = "minmax"
    usual_block = Block(4, 8)
    usual_storage = torch.float16

    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = block_ends(blocks)
        steps = 2 ** self.bits - 1
        return torch.arange(steps + 1, dtype=torch.float32), (high - low) / steps, low
