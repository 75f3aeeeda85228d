"""Steps of the forward pass that keep for backward only what it needs, and compute the rest again.

Each is one equation, whose plain form is the oracle of its test. Backward of the plain forms keeps several tensors of
float32 for one of bfloat16, and fills zeros for every slice of one.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class NotKept:
    """A context for `forward` that keeps nothing."""
    needs_input_grad = (False,) * 8

    def save_for_backward(self, *tensors: Tensor) -> None:
        pass


def run(step: type[torch.autograd.Function], *inputs: Any) -> Any:
    """`step.apply(*inputs)`; without autograd its `forward` alone, because `apply` takes 10 us, and one token's layer
    500."""
    return step.apply(*inputs) if torch.is_grad_enabled() else step.forward(NotKept(), *inputs)


class FrozenLinear(torch.autograd.Function):
    """x @ weight.T + bias in the type of x, for a weight of another type that does not train: no copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        return grad_y @ ctx.weight.to(grad_y.dtype), None, None


class FrozenNorm(torch.autograd.Function):
    """weight * round(x * r),   r = 1 / sqrt(mean(x^2) + eps) in at least float32; the weight does not train.

    grad_x = r * (g - n * mean(g * n)),   g = grad_y * weight, n = x * r. Keeps x and r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, r)
        ctx.weight = weight
        return weight.to(x.dtype) * (wide * r).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        x, r = ctx.saved_tensors
        n = x.to(r.dtype) * r
        g = (grad_y * ctx.weight.to(grad_y.dtype)).to(r.dtype)
        mean = torch.linalg.vecdot(g, n)[..., None] / n.shape[-1]
        return g.addcmul_(n, mean, value=-1).mul_(r).to(x.dtype), None, None


class Rotation(torch.autograd.Function):
    """x * cos + (-second half, first half) * sin. Backward turns back: the same with -sin. Keeps the angles only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotated(grad, cos, -sin), None, None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + d/2}) by its position's angle: the half-split layout of Hugging Face. d is the last
    size of cos and sin; dimensions of x from d on stay.

    The halves of cos and sin are the same, so that one is read. Each half is written once, into its place."""
    d, half = cos.shape[-1], cos.shape[-1] // 2
    first, second = x[..., :half], x[..., half:d]
    cos, sin, y = cos[..., :half], sin[..., :half], torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=y[..., :half]).sub_(second * sin)
    torch.mul(second, cos, out=y[..., half:d]).add_(first * sin)
    if d < x.shape[-1]:
        y[..., d:] = x[..., d:]
    return y


class GatedSiLU(torch.autograd.Function):
    """silu(gate) * up. Keeps gate and up, and not silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


class ShortAttention(torch.autograd.Function):
    """softmax(q k^T * scale) v over the keys up to the query's own, scores and softmax in at least float32.

    q (B, heads, T, head_dim), k and v (B, kv_heads, T, head_dim): heads / kv_heads queries share a key, as rows of one
    product. Keeps q, k, v and the probabilities, in the type of q. For sequences so short that all scores of a layer
    are few; a kernel that never stores them is slower there (`fused_attention`)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.heads, ctx.scale = q.shape[:2], scale
        T = q.shape[2]
        q, k, v = in_groups(q, k.shape[1]), k.flatten(0, 1), v.flatten(0, 1)
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = torch.bmm(q.to(wide) * scale, k.to(wide).transpose(1, 2))
        later = torch.full((T, T), -torch.inf, dtype=wide, device=q.device).triu_(1)
        p = scores.view(-1, T, T).add_(later).softmax(-1).to(q.dtype).view_as(scores)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(*ctx.heads, T, -1)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, p = ctx.saved_tensors
        B, heads = ctx.heads
        T, D = k.shape[1:]
        grad_y = in_groups(grad_y, len(k) // B)
        grad_v = torch.bmm(p.transpose(1, 2), grad_y)
        grad_p = torch.bmm(grad_y, v.transpose(1, 2))
        mean = torch.linalg.vecdot(grad_p, p)[..., None]  # of grad_p under p
        grad_scores = grad_p.sub_(mean).mul_(p).mul_(ctx.scale)
        grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
        return grad_q.view(B, heads, T, D), grad_k.view(B, -1, T, D), grad_v.view(B, -1, T, D), None


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T * scale) v over the allowed keys (None: all), scores and softmax in at least float32.

    The queries of a key are rows of one product, as in `ShortAttention`. For few new tokens after many, where the fused
    kernel is slow (`fused_attention`)."""
    B, heads, T, D = q.shape
    wide, (k, v), kv_heads = torch.promote_types(q.dtype, torch.float32), (k.flatten(0, 1), v.flatten(0, 1)), k.shape[1]
    scores = torch.bmm(in_groups(q, kv_heads).to(wide) * scale, k.to(wide).transpose(1, 2))
    if allowed is not None:
        scores.view(B, heads, T, -1).masked_fill_(~allowed, -torch.inf)
    return torch.bmm(scores.softmax(-1).to(q.dtype), v).view(B, heads, T, D)


def in_groups(x: Tensor, kv_heads: int) -> Tensor:
    """(B, heads, T, head_dim) -> (B * kv_heads, heads / kv_heads * T, head_dim)"""
    return x.reshape(len(x) * kv_heads, -1, x.shape[-1])
