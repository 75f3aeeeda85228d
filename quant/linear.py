"""The linear layer that holds packed codes, levels, scale and offset, and no dense weight."""
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quant.factors import DoubleQuantized, ZeroPoints
from quant.grid import Block, Grid, QuantizedWeight, dequantize_packed
from quant.packing import pack, packed_bytes, unpack


class DequantizedMatmul(torch.autograd.Function):
    """y = x @ W_hat.T with W_hat frozen.

    Backward makes W_hat again, so training holds only a layer's packed codes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "QuantLinear") -> Tensor:
        ctx.layer = layer
        return x @ layer.dequantize(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        return grad_y @ ctx.layer.dequantize(grad_y.dtype), None


class QuantLinear(nn.Module):
    """y = x @ W_hat.T + bias, W_hat = scale * levels[codes] + offset.

    The buffers are what a checkpoint holds: `codes` (packed bytes), `levels`, `scale`, `offset`, `bias`. Scale and
    offset are modules with buffers of their own if they are not plain tensors (`factors.py`)."""
    codes: Tensor
    levels: Tensor
    scale: Tensor | DoubleQuantized
    offset: Tensor | DoubleQuantized | ZeroPoints
    bias: Tensor | None

    def __init__(self, D_out: int, D_in: int, packed_codes: Tensor, grid: Grid, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = D_out, D_in
        self.bits, self.block = grid.bits, grid.block
        self.register_buffer("codes", packed_codes)
        self.register_buffer("levels", grid.levels)
        for name, factor in (("scale", grid.scale), ("offset", grid.offset)):
            if isinstance(factor, Tensor):
                self.register_buffer(name, factor)
            else:
                self.add_module(name, factor)
        self.register_buffer("bias", bias)

    @classmethod
    def from_weight(cls, weight: QuantizedWeight, bias: Tensor | None = None) -> "QuantLinear":
        D_out, D_in = weight.codes.shape
        return cls(D_out, D_in, pack(weight.codes, weight.grid.bits), weight.grid, bias)

    @classmethod
    def on_meta(cls, D_out: int, D_in: int, block: Block, bits: int, bias: bool = False,
                zero_points: bool = False, layer: str = "weight") -> "QuantLinear":
        """A layer with sizes and no memory, for checks that read headers only. `zero_points`: its offsets are integer
        zero points. Raises ValueError, with the layer, if the block does not divide it."""
        block.check_divides(D_out, D_in, layer)
        block = block.in_layer(D_in)
        with torch.device("meta"):
            scale = torch.empty(D_out // block.n_out, D_in // (block.n_in or D_in))
            zero = torch.empty(packed_bytes(scale.numel(), bits), dtype=torch.uint8)
            offset = ZeroPoints(zero, bits) if zero_points else torch.empty(1, 1)
            codes = torch.empty(packed_bytes(D_out * D_in, bits), dtype=torch.uint8)
            grid = Grid(torch.empty(2 ** bits), scale, offset, block, bits)
            return cls(D_out, D_in, codes, grid, torch.empty(D_out) if bias else None)

    @property
    def grid(self) -> Grid:
        return Grid(self.levels, self.scale, self.offset, self.block, self.bits)

    @property
    def block_size(self) -> tuple[int, int]:
        """(n_in, n_out) of the block, both as numbers: `rowx1` is (D_in, 1)."""
        return self.block.n_in or self.in_features, self.block.n_out

    def with_offset(self, offset: Tensor) -> "QuantLinear":
        """A layer with another offset. It shares all other buffers, `codes` included, with this one."""
        return self._with_grid(replace(self.grid, offset=offset))

    def with_scale(self, scale: Tensor) -> "QuantLinear":
        """A layer with another scale. It shares all other buffers, `codes` included, with this one."""
        return self._with_grid(replace(self.grid, scale=scale))

    def with_factors(self, scale: Tensor, offset: Tensor) -> "QuantLinear":
        """A layer with another scale and another offset. It shares all other buffers, `codes` included."""
        return self._with_grid(replace(self.grid, scale=scale, offset=offset))

    def _with_grid(self, grid: Grid) -> "QuantLinear":
        return QuantLinear(self.out_features, self.in_features, self.codes, grid, self.bias)

    def quantized_weight(self) -> QuantizedWeight:
        """The terms of Eq. 1, codes unpacked."""
        return QuantizedWeight(unpack(self.codes, self.bits, (self.out_features, self.in_features)), self.grid)

    def check(self, layer: str) -> None:
        """Raises ValueError, with the layer, for values that no quantizer stores: levels that do not ascend, a scale or
        an offset that is not finite, and a code without a level."""
        if not (self.levels.isfinite().all() and (self.levels[1:] > self.levels[:-1]).all()):
            raise ValueError(f"{layer}.levels must be finite and ascend")
        for name, factor in zip(("scale", "offset"), self.grid.factors(), strict=True):
            if not factor.isfinite().all():
                raise ValueError(f"{layer}.{name} holds a value that is not finite")
        if len(self.levels) < 2 ** self.bits:
            codes = unpack(self.codes, self.bits, (self.out_features, self.in_features))
            if (highest := int(codes.max())) >= len(self.levels):
                raise ValueError(f"{layer}.codes holds {highest}, but there are {len(self.levels)} levels")

    def dequantize(self, dtype: torch.dtype = torch.float32, scale: Tensor | None = None) -> Tensor:
        """W_hat, (out_features, in_features); with another scale if one is given."""
        grid = self.grid if scale is None else replace(self.grid, scale=scale)
        return dequantize_packed(self.codes, self.bits, (self.out_features, self.in_features), grid, dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = DequantizedMatmul.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.bits} bits, block {self.block}"


def stored_bytes(modules: list[nn.Module]) -> int:
    """Bytes of all parameters and buffers. A tensor that several modules share counts once."""
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
