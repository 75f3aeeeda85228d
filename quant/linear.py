"""The linear layer that holds packed codes, scales and offsets, and no weight."""
import torch
from torch import Tensor, nn

from quant.grid import Grid, QuantizedWeight
from quant.packing import pack, unpack


class DequantizedMatmul(torch.autograd.Function):
    """y = x @ W_hat.T with W_hat frozen. W_hat is made anew in backward rather than kept from forward: what training
    holds of a layer is its packed codes."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: "QuantLinear") -> Tensor:
        ctx.layer = layer
        return x @ layer.dequantize(x.dtype).T

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor, None]:
        return grad_y @ ctx.layer.dequantize(grad_y.dtype), None


class QuantLinear(nn.Module):
    """y = x @ W_hat.T + bias, W_hat = scale * levels[codes] + offset.

    The buffers are what a checkpoint holds: `codes` (packed bytes), `levels`, `scale`, `offset`, the last two as modules with
    buffers of their own where they are not plain tensors."""

    def __init__(self, D_out: int, D_in: int, packed_codes: Tensor, grid: Grid, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = D_out, D_in
        self.bits, self.block = grid.bits, grid.block
        self.register_buffer("codes", packed_codes)
        self.register_buffer("levels", grid.levels)
        for name, factor in (("scale", grid.scale), ("offset", grid.offset)):
            keep = self.register_buffer if isinstance(factor, Tensor) else self.add_module
            keep(name, factor)
        self.register_buffer("bias", bias)

    @classmethod
    def from_weight(cls, weight: QuantizedWeight, bias: Tensor | None = None) -> "QuantLinear":
        return cls(*weight.codes.shape, pack(weight.codes, weight.grid.bits), weight.grid, bias)

    def quantized_weight(self) -> QuantizedWeight:
        """The layer as Eq. 1 has it, codes unpacked."""
        codes = unpack(self.codes, self.bits, (self.out_features, self.in_features))
        return QuantizedWeight(codes, Grid(self.levels, self.scale, self.offset, self.block, self.bits))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_hat, (out_features, in_features)."""
        return self.quantized_weight().dequantize(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = DequantizedMatmul.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.bits} bits, block {self.block}"
