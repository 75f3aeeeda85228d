"""PEQA (Kim et al. 2023; Shen et al., Table 1): the scales of a quantized base train, and nothing else."""
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from adapters.adapter import Adapter
from quant.factors import ZeroPoints
from quant.grid import Block, join_blocks, per_block, split_blocks
from quant.linear import QuantLinear

NO_ZERO_POINTS = ("this base has no integer zero points, and peqa trains the scale of a grid that has them: "
                  "use --quantizer intminmax, or --quantizer gptq --grid intminmax, on a dense base")


class RescaledMatmul(torch.autograd.Function):
    """y = x @ W_hat.T with gradients for x and for the scale of W_hat.

    Saves x and the scale only. Backward makes the weight again as scale * (codes - z), which is W_hat but for rounding,
    and holds the gradient of one layer's whole weight until it is summed over the blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, base: QuantLinear) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.base = base
        return x @ base.dequantize(x.dtype, scale).T

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        grad_weight = grad_y.reshape(-1, grad_y.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        one = torch.ones_like(scale, dtype=torch.float16)  # its products are exact: no zeros have to be set
        steps = split_blocks(ctx.base.dequantize(scale.dtype, one), ctx.base.block)  # codes - z: dW_hat / dscale
        grad_scale = (split_blocks(grad_weight, ctx.base.block) * steps).sum(1).sum(-1)
        weight = join_blocks(steps.mul_(per_block(scale))).to(grad_y.dtype)
        return grad_y @ weight, grad_scale, None


class RescaledLinear(AdaptedLinear):
    """y = x @ ((scale + d_scale) * (codes - z)).T + bias: the one adapted layer that is not base(x) + delta(x).

    There is no dropout: it acts on the input of an additive adapter, and PEQA has none. Raises ValueError unless the
    base has integer zero points."""

    def __init__(self, base: nn.Module, adapter: "PEQA", dropout: float = 0.0):
        if not (isinstance(base, QuantLinear) and isinstance(base.offset, ZeroPoints)):
            raise ValueError(NO_ZERO_POINTS)
        super().__init__(base, adapter)

    def forward(self, x: Tensor) -> Tensor:
        y = RescaledMatmul.apply(x, self._scale(), self.base)
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    def weight(self) -> Tensor:
        return self.base.dequantize(self.adapter.log_factor.dtype, self._scale())

    def _scale(self) -> Tensor:
        return self.adapter.scale(self.base.scale)


class PEQA(Adapter):
    """W_hat = (scale + d_scale) * (codes - z);  d_scale = scale * (exp(log_factor) - 1).

    Codes and z are frozen. `log_factor` is the logarithm of a factor on each block's scale, and starts at 0. A scale
    therefore stays positive after any step, and one learning rate suits layers of different size. Differs from PEQA,
    which trains the scale itself, with nothing to keep it positive.

    Raises ValueError for a block of None: a dense base has no scales."""
    name = "peqa"
    options = ("block",)
    additive, merges_into, layer = False, "scale", RescaledLinear
    only_here = ("it trained a factor on each scale of the k-bit codes, and an l-bit base has other codes and other "
                 "scales")

    def __init__(self, D_out: int, D_in: int, block: Block | None):
        super().__init__()
        if block is None:
            raise ValueError(NO_ZERO_POINTS)
        n_in = block.n_in or D_in
        self.log_factor = nn.Parameter(torch.zeros(D_out // block.n_out, D_in // n_in))  # one number for each scale

    def scale(self, base_scale: Tensor) -> Tensor:
        """scale + d_scale, in the parameter's type."""
        return base_scale.to(self.log_factor.dtype) * self.log_factor.exp()
