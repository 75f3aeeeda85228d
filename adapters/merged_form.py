"""Training in the merged form: one product with the weight that the merge will write.

    y = x @ W.T,   W = scale * levels[codes] + (offset + delta_W)                      block by block
    grad_x = grad_y @ W,   grad_core = scaling / lam_in * (grad_y summed over lam_out)^T (x summed over lam_in)

It holds where an averaging adapter merges into the offset: each block lies inside one tile (`merge.py`). The layer then
computes what the merged layer computes, in any type and to the last bit. Beside a base that is a layer of its own, base
and adapter would be rounded apart. The adapter also costs no product of its own.
"""
from typing import Any

import torch
from torch import Tensor, nn

from adapters.lam import Lam, group_sum
from quant.linear import QuantLinear


def inside_tiles(base: QuantLinear, tile: Lam) -> bool:
    """Whether each quantization block lies inside one tile of the adapter."""
    n_in, n_out = base.block_size
    return tile.lam_in % n_in == 0 and tile.lam_out % n_out == 0


def has_merged_form(base: nn.Module, adapter: Any) -> bool:
    """Whether base and adapter are one product. An adapter without averaged tiles has its own cheap path."""
    return (isinstance(base, QuantLinear) and getattr(adapter, "additive", False) and adapter.lam != Lam(1, 1)
            and adapter.tile == adapter.lam and inside_tiles(base, adapter.tile))


def offset_with(base: QuantLinear, adapter: Any, core: Tensor) -> Tensor:
    """offset + delta_W on that block, (D_out/n_out, D_in/n_in), in the wider of the two types.

    The sum is float32 as a rule, even for a float16 offset: rounding it to float16 would be a second quantization.
    Differs from `get_new_beta` of Algorithm 2, which expands beta to the full matrix: here it stays one number a block
    (erratum 5)."""
    (n_in, n_out), lam = base.block_size, adapter.lam
    delta = adapter.scaling * (core / lam.lam_in)  # of each tile
    of_block = delta.repeat_interleave(lam.lam_out // n_out, 0).repeat_interleave(lam.lam_in // n_in, 1)
    _, offset = base.grid.factors()
    return offset.to(torch.promote_types(offset.dtype, of_block.dtype)) + of_block


def merged_product(x: Tensor, base: QuantLinear, adapter: Any) -> Tensor:
    """y = x @ W.T + bias."""
    y = MergedProduct.apply(x, adapter.core_weight(), base, adapter)
    return y if base.bias is None else y + base.bias.to(y.dtype)


class MergedProduct(torch.autograd.Function):
    """Keeps the sums of x over lam_in and the offsets. Backward makes W again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, core: Tensor, base: QuantLinear, adapter: Any) -> Tensor:
        ctx.layer = base.with_offset(offset_with(base, adapter, core))
        ctx.adapter, ctx.core_dtype = adapter, core.dtype
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(group_sum(x, adapter.lam.lam_in))
        return x @ ctx.layer.dequantize(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_x = grad_core = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_y @ ctx.layer.dequantize(grad_y.dtype)
        if ctx.needs_input_grad[1]:
            sums, lam = ctx.saved_tensors[0], ctx.adapter.lam
            grad_sums = group_sum(grad_y, lam.lam_out).flatten(0, -2)
            grad_core = (grad_sums.T @ sums.flatten(0, -2)).to(ctx.core_dtype) * (ctx.adapter.scaling / lam.lam_in)
        return grad_x, grad_core, None, None
