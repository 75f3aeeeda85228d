"""Min-max: the grid's ends are the block's smallest and largest weight (Shen et al., Sec. 3.1, below Eq. 1)."""
import torch
from torch import Tensor

from quant.grid import Block
from quant.quantizer import Quantizer, block_ends


class MinMax(Quantizer):
    """scale = (max - min) / (2^N - 1);  offset = min;  levels = 0 .. 2^N - 1.

    A block of one constant has scale 0 and comes back as its stored offset: exactly, if the storage type holds the
    constant, as float16 does for all float16 and nearly all bfloat16 weights. A float32 constant is rounded to float16,
    by at most 2^-11 of its value."""
    name = "minmax"
    usual_block = Block(4, 8)
    usual_storage = torch.float16

    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = block_ends(blocks)
        steps = 2 ** self.bits - 1
        return torch.arange(steps + 1, dtype=torch.float32), (high - low) / steps, low
