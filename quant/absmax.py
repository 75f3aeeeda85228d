"""Absmax: a symmetric integer grid (Shen et al., Sec. 3.1)."""
import torch
from torch import Tensor

from quant.grid import Block
from quant.quantizer import Quantizer, block_absmax


class AbsMax(Quantizer):
    """scale = max|w| / (2^(N-1) - 1);  offset = 0;  levels = -(2^(N-1) - 1) .. 2^(N-1) - 1.

    Differs from Shen et al., who divide by 2^N - 1: signed weights would then need N + 1 bits (erratum 1)."""
    name = "absmax"
    usual_block = Block(64, 1)
    usual_storage = torch.float16

    def fit_blocks(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        top = 2 ** (self.bits - 1) - 1
        levels = torch.arange(-top, top + 1, dtype=torch.float32)
        return levels, block_absmax(blocks) / top, torch.zeros(1, 1, device=blocks.device)
