"""LoTA-QAF (Chen et al. 2025): two ternary matrices move codes by one, and what is left goes into the offset.

    P  = B A                                       A (r, D_in), B (D_out, r) of -1, 0, 1: P is whole, -r .. r
    t  = sign(P) * [|P| > omega]                   0 where codes + t would leave the grid
    mu = mean of P / omega - t over the block      one number a block
    W  = scale * levels[codes + t] + (offset + scale * mu),   y = x @ W.T

The merge writes codes + t and offset + scale * mu. It needs levels that are consecutive whole numbers.

The gradient passes the threshold as if t were P / omega. Where t is 0 because the grid ends there, only mu moves:

    d(loss)/dP = scale / omega * (G, or the block's mean of G where the grid ends),   G = grad_y^T x

Differs from the released code as docs/papers.md says. A and B step by t-SignSGD (finetune/sign_sgd.py).
"""
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.adapted import AdaptedLinear
from adapters.adapter import Adapter
from quant.grid import QuantizedWeight, join_blocks, per_block, split_blocks
from quant.linear import QuantLinear
from quant.rounding import whole_ends

CODES_AND_OFFSET = "codes and offset"
SHARE = 4.0    # the usual omega, in units of sqrt(rank) / 2^bits
SPARSE = 0.75  # of mean |a|: what A holds as 0 at the start
NO_WHOLE_LEVELS = ("lota moves codes by one step of an even grid, and the levels of this base are not consecutive "
                   "whole numbers: use --quantizer minmax, intminmax or absmax, or --quantizer gptq with one of these "
                   "as --grid, on a dense base")


class TernaryMatmul(torch.autograd.Function):
    """y = x @ W.T. Saves x only. Backward makes P and W again, and holds the gradient of one layer's whole weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, P: Tensor, layer: "TernaryLinear") -> Tensor:
        ctx.layer, ctx.type_of_P = layer, P.dtype
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x)
        return x @ moved(layer.base, P, layer.adapter.omega).dequantize(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_x = grad_P = None
        base, adapter = ctx.layer.base, ctx.layer.adapter
        P = adapter.product().detach()
        if ctx.needs_input_grad[1]:
            x, = ctx.saved_tensors
            grad_weight = (grad_y.flatten(0, -2).T @ x.flatten(0, -2)).to(ctx.type_of_P)
            grad_P = through_threshold(base, P, adapter.omega, grad_weight)
        if ctx.needs_input_grad[0]:
            grad_x = grad_y @ moved(base, P, adapter.omega).dequantize(grad_y.dtype)
        return grad_x, grad_P, None


class TernaryLinear(AdaptedLinear):
    """y = x @ W.T + bias: what the merged layer computes, to the last bit.

    There is no dropout: it acts on the input of an adapter that has a product of its own. Raises ValueError unless the
    base holds codes of consecutive whole levels; a base without memory is not looked at."""

    def __init__(self, base: nn.Module, adapter: "LoTA", dropout: float = 0.0):
        if not isinstance(base, QuantLinear):
            raise ValueError("its base is not quantized, and lota moves codes: give a --quantizer")
        if not (base.levels.is_meta or whole_ends(base.levels)):
            raise ValueError(NO_WHOLE_LEVELS)
        super().__init__(base, adapter)
        adapter.set_omega(base.bits)

    def forward(self, x: Tensor) -> Tensor:
        y = TernaryMatmul.apply(x, self.adapter.product(), self)
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)

    def weight(self) -> Tensor:
        P = self.adapter.product().detach()
        return moved(self.base, P, self.adapter.omega).dequantize(torch.promote_types(P.dtype, torch.float32))

    def merged(self) -> QuantLinear:
        P = self.adapter.product().detach()
        return QuantLinear.from_weight(moved(self.base, P, self.adapter.omega), self.base.bias)


class LoTA(Adapter):
    """A starts as the signs of normal numbers, 0 where |a| <= 0.75 mean |a|; B starts at 0, so step 0 is the base.

    omega: t moves a code where |P| is larger; None: `usual_omega` of the base. Raises ValueError unless 0 < omega <
    rank: |P| is at most the rank."""
    name = "lota"
    options = ("rank", "omega")
    additive, merges_into, layer = False, CODES_AND_OFFSET, TernaryLinear
    only_here = "it moved the k-bit codes by whole steps, and an l-bit base has other codes and other steps"

    def __init__(self, D_out: int, D_in: int, rank: int, omega: float | None = None):
        super().__init__()
        self.given, self.omega = omega, omega or 0.0
        if omega is not None and not 0 < omega < rank:
            raise ValueError(f"omega={omega:g} moves no code: |B A| is at most the rank, {rank}; give --omega "
                             f"between 0 and {rank}, or leave it out")
        a = torch.randn(rank, D_in)
        self.A = nn.Parameter(a.sign() * (a.abs() > SPARSE * a.abs().mean()))
        self.B = nn.Parameter(torch.zeros(D_out, rank))

    def set_omega(self, bits: int) -> None:
        if self.given is None:
            self.omega = usual_omega(len(self.A), bits)

    def product(self) -> Tensor:
        """P = B A, (D_out, D_in)."""
        return self.B @ self.A


def usual_omega(rank: int, bits: int) -> float:
    """4 sqrt(rank) / 2^bits, and less than the rank: 1 at rank 16 and 4 bits, 4 at 2 bits.

    W changes by about scale / omega * P. P is a sum of `rank` signs, whose size grows as sqrt(rank), and scale falls as
    2^-bits: W then changes as much at any rank and width. Chosen on the embedded base (docs/methods.md), since no
    number of the paper is known here."""
    return min(SHARE * rank ** 0.5 / 2 ** bits, 0.75 * rank)


def stepped(base: QuantLinear, P: Tensor, omega: float) -> tuple[Tensor, Tensor, Tensor]:
    """codes + t, t, and where t is 0 because the grid ends there. (D_out, D_in): uint8, int16, bool."""
    codes, wanted = base.quantized_weight().codes.to(torch.int16), (P.sign() * (P.abs() > omega)).to(torch.int16)
    end = len(base.levels) - 1
    outside = (codes + wanted < 0) | (codes + wanted > end)
    t = wanted.masked_fill_(outside, 0)
    return (codes + t).to(torch.uint8), t, outside


@torch.no_grad()
def moved(base: QuantLinear, P: Tensor, omega: float) -> QuantizedWeight:
    """W: codes + t, and offset + scale * mu in the wider of float32 and the type of the offset.

    P and t are added up as whole numbers, so that mu does not depend on an order of additions."""
    codes, t, _ = stepped(base, P, omega)
    scale, offset = base.grid.factors()
    wide, block = torch.promote_types(torch.promote_types(P.dtype, offset.dtype), torch.float32), base.grid.block
    of_P, of_t = (split_blocks(part.to(wide), block).sum((1, 3)) for part in (P, t))
    n_in, n_out = base.block_size
    mu = (of_P / omega - of_t) / (n_in * n_out)
    return QuantizedWeight(codes, replace(base.grid, offset=offset.to(wide) + scale.to(wide) * mu))


@torch.no_grad()
def through_threshold(base: QuantLinear, P: Tensor, omega: float, grad_weight: Tensor) -> Tensor:
    """d(loss)/dP. (D_out, D_in), of d(loss)/dW."""
    _, _, outside = stepped(base, P, omega)
    scale, _ = base.grid.factors()
    grad, still = split_blocks(grad_weight, base.grid.block), split_blocks(outside, base.grid.block)
    grad = torch.where(still, grad.mean((1, 3), keepdim=True), grad)
    return join_blocks(grad * (per_block(scale.to(grad.dtype)) / omega))
