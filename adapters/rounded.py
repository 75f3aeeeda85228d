"""Training through the rounding: the adapter moves the codes, and the merge writes the codes that trained.

    W = scale * levels[round(levels[codes] + residual + delta_W / scale)] + offset,   y = x @ W.T
    d(loss)/d(delta_W) = grad_y^T x,   0 where the rounding clips

This is LR-QAT's layer (Bondarenko et al. 2024) for any additive adapter, any levels and any block. delta_W is added to
the original weights (--keep-residual) or to others that round to the same codes (quant/moved.py). Step 0 is the base
either way. Differs from LR-QAT, which downcasts the original weights: their residual is as large and finer. The
gradient passes the rounding as if it were not there. Scale and offset do not change.
"""
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from adapters.adapter import Adapter
from quant.grid import QuantizedWeight
from quant.linear import QuantLinear
from quant.moved import clipped, positions, rounded

CODES, SPREAD = "codes", "spread"
NO_CODES = ("its base is not quantized, so it has no codes to merge into: leave --merge-into out, or quantize the "
            "base, for example with --method qlora")


class RoundedMatmul(torch.autograd.Function):
    """y = x @ W.T, W of codes that delta_W has moved.

    Saves x only. Backward makes delta_W and W again, and holds the gradient of one layer's whole weight until autograd
    has passed it on to the factors of delta_W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, layer: "RoundedLinear") -> Tensor:
        ctx.layer, ctx.delta_type = layer, delta.dtype
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x)
        return x @ layer.moved(delta).dequantize(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_x = grad_delta = None
        base = ctx.layer.base
        position = positions(base, ctx.layer.adapter.delta_weight().detach(), ctx.layer.residual)
        if ctx.needs_input_grad[1]:
            x, = ctx.saved_tensors
            grad_delta = (grad_y.flatten(0, -2).T @ x.flatten(0, -2)).to(ctx.delta_type)
            grad_delta.masked_fill_(clipped(position, base.grid), 0)
        if ctx.needs_input_grad[0]:
            grad_x = grad_y @ rounded(position, base.grid).dequantize(grad_y.dtype)
        return grad_x, grad_delta, None


class RoundedLinear(AdaptedLinear):
    """y = x @ W.T + bias: an adapted layer that computes what its merged layer computes, to the last bit.

    There is no dropout: it acts on the input of an adapter that has a product of its own. Raises ValueError for a base
    without codes."""

    residual: Tensor | None  # None: that of `quant.moved.spread`

    def __init__(self, base: nn.Module, adapter: nn.Module, dropout: float = 0.0):
        if not isinstance(base, QuantLinear):
            raise ValueError(NO_CODES)
        super().__init__(base, adapter)
        self.register_buffer("residual", None)

    def forward(self, x: Tensor) -> Tensor:
        y = RoundedMatmul.apply(x, self.adapter.delta_weight(), self)
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    def weight(self) -> Tensor:
        delta = self.adapter.delta_weight().detach()
        return self.moved(delta).dequantize(torch.promote_types(delta.dtype, torch.float32))

    def moved(self, delta: Tensor) -> QuantizedWeight:
        return rounded(positions(self.base, delta, self.residual), self.base.grid)

    def merged(self) -> QuantLinear:
        return QuantLinear.from_weight(self.moved(self.adapter.delta_weight().detach()), self.base.bias)


def into_codes(adapter: Adapter) -> Adapter:
    """The adapter, which from now on trains and merges through the rounding. Raises ValueError unless it is
    additive."""
    if not adapter.additive:
        raise ValueError(f"{adapter.name} is not additive and merges into the {adapter.merges_into}: leave "
                         f"--merge-into out, or use an additive method, such as qlora")
    adapter.layer, adapter.merges_into = RoundedLinear, CODES
    return adapter
