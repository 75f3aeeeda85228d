"""Scale and offset together: both numbers of each block of a quantized base train, and nothing else.

    W = f * W_hat + H / 8 = (scale * f) * levels[codes] + (offset * f + H / 8),  f = exp(log_factor)    block by block

PEQA's factor and QA-BLoRA's H at the resolution of the blocks. Both factors are real numbers, so this goes with every
grid, and the merge is exact: codes and levels stay.
"""
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from adapters.adapter import Adapter
from quant.grid import Block, join_blocks, per_block, split_blocks
from quant.linear import QuantLinear

SCALE_AND_OFFSET = "scale and offset"
NO_CODES = ("this base is not quantized, and scaleoffset trains the scales and offsets of codes: use --quantizer "
            "minmax, or a base that holds codes")
UNIT = 1 / 8  # of H, so that one learning rate suits it and log_factor (docs/learning-rate.md)


class RefittedMatmul(torch.autograd.Function):
    """y = x @ W.T with gradients for x, log_factor and H.

    Saves x, and keeps the two factors of W. Backward makes f * W_hat, which is dW/d(log_factor), and then W, once; it
    holds the gradient of one layer's whole weight until it is summed over the blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_factor: Tensor, H: Tensor, layer: "RefittedLinear") -> Tensor:
        ctx.refitted = layer.merged()
        ctx.save_for_backward(x, H)
        return x @ ctx.refitted.dequantize(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, H = ctx.saved_tensors
        block, added = ctx.refitted.block, UNIT * H
        grad_weight = split_blocks(grad_y.flatten(0, -2).T @ x.flatten(0, -2), block)
        scale, offset = ctx.refitted.grid.factors()
        scaled = split_blocks(ctx.refitted.with_offset(offset - added).dequantize(H.dtype), block)  # f * W_hat
        grad_factor = (grad_weight * scaled).sum(1).sum(-1)
        grad_H = UNIT * grad_weight.sum((1, 3), dtype=H.dtype)
        weight = join_blocks(scaled.add_(per_block(added))).to(grad_y.dtype)
        return grad_y @ weight, grad_factor, grad_H, None


class RefittedLinear(AdaptedLinear):
    """y = x @ W.T + bias: an adapted layer that computes what its merged layer computes, to the last bit.

    There is no dropout, as in PEQA. Raises ValueError for a base without codes."""

    def __init__(self, base: nn.Module, adapter: "ScaleOffset", dropout: float = 0.0):
        if not isinstance(base, QuantLinear):
            raise ValueError(NO_CODES)
        super().__init__(base, adapter)

    def forward(self, x: Tensor) -> Tensor:
        y = RefittedMatmul.apply(x, self.adapter.log_factor, self.adapter.H, self)
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    def weight(self) -> Tensor:
        return self.merged().dequantize(torch.promote_types(self.adapter.H.dtype, torch.float32))

    @torch.no_grad()
    def merged(self) -> QuantLinear:
        """The base with its trained scale and offset; it shares all other buffers."""
        return self.base.with_factors(*self.adapter.factors(*self.base.grid.factors()))


class ScaleOffset(Adapter):
    """scale' = scale * f,   offset' = offset * f + H / 8,   f = exp(log_factor).

    The factor is that of the block's whole weight, not of its scale alone: on integer zero points it is then PEQA's,
    and on any grid H has little to make up for. A factor on the scale alone moves the mean of a min-max block, whose
    levels are 0 or more, and H would have to move it back. As in PEQA's file, a factor stays positive after any step.

    Raises ValueError for a block of None: a dense base has no scales."""
    name = "scaleoffset"
    options = ("block",)
    additive, merges_into, layer = False, SCALE_AND_OFFSET, RefittedLinear
    only_here = ("it trained a factor on each scale of the k-bit codes and what is added to each offset, and an l-bit "
                 "base has other codes, scales and offsets")

    def __init__(self, D_out: int, D_in: int, block: Block | None):
        super().__init__()
        if block is None:
            raise ValueError(NO_CODES)
        shape = D_out // block.n_out, D_in // (block.n_in or D_in)  # one number for each block
        self.log_factor, self.H = (nn.Parameter(torch.zeros(shape)) for _ in range(2))

    def factors(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """scale' and offset', (D_out/n_out, D_in/n_in), in the wider of the factors' and the parameters' type."""
        f = self.log_factor.exp()
        return f * scale, f * offset + UNIT * self.H
