"""The loss of a vocabulary, without the logits of a whole batch.

    loss = sum over i of -log softmax(logits(x_i))[target_i],   natural logarithm, in at least float32

Logits take 4 * vocabulary bytes a token in float32: 200 MB for 1024 tokens and 49,152 words, several times over with
their gradients. Here they exist for a few tokens at a time. The loss is a sum, so the gradient of each part is known as
soon as its logits are: forward computes it, and backward only scales it.
"""
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.llama import Llama

LOGITS_AT_ONCE = 6 * 2 ** 20  # 25 MB in float32: 128 tokens of 49,152 words. Measured: twice or half as many are slower
ON_A_GPU = 16                 # times as many: launching a kernel costs more than its memory
WHERE_IT_TRAINS = 4           # times as many if the projection trains, whose gradient is added up part by part


# (logits of some rows, which rows, whether it learns) -> their summed loss, and its gradient in the type of the logits
LossOfPart = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]


def summed_loss_of(model: Llama, x: Tensor, targets: Tensor) -> Tensor:
    """The loss of outputs x (n, hidden_size) of the last decoder layer, for the next tokens targets (n,)."""
    return loss_in_parts(model, x, lambda logits, rows, learns: cross_entropy(logits, targets[rows], learns))


def loss_in_parts(model: Llama, x: Tensor, of_part: LossOfPart) -> Tensor:
    """The sum of `of_part` over outputs x (n, hidden_size) of the last decoder layer, some rows at a time."""
    trained = [p for p in (*model.model.norm.parameters(), *model.lm_head.parameters()) if p.requires_grad]
    learns = torch.is_grad_enabled() and (x.requires_grad or bool(trained))  # not known inside: autograd is off there
    return SummedLoss.apply(learns, model, x, of_part, *trained)


class SummedLoss(torch.autograd.Function):
    """Keeps the gradients of x, and of what trains in the last norm and in the projection."""

    @staticmethod
    def forward(ctx: Any, learns: bool, model: Llama, x: Tensor, of_part: LossOfPart,
                *trained: Tensor) -> Tensor:
        more = (WHERE_IT_TRAINS if trained else 1) * (1 if x.is_cpu else ON_A_GPU)
        at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size * more)
        losses, grads_x, grads = [], [], [torch.zeros_like(p) for p in trained]
        for first, part in zip(range(0, max(1, len(x)), at_once), x.detach().split(at_once), strict=True):
            with torch.set_grad_enabled(learns):
                leaf = part.requires_grad_(learns)
                logits = model.logits(leaf)
            loss, grad_logits = of_part(logits.detach(), slice(first, first + len(part)), learns)
            losses.append(loss)
            if learns:
                grad_x, *more_grads = torch.autograd.grad(logits, [leaf, *trained], grad_logits)
                grads_x.append(grad_x)
                for total, grad in zip(grads, more_grads, strict=True):
                    total += grad
        if learns:
            ctx.save_for_backward(torch.cat(grads_x), *grads)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, *grads = (grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return None, None, grad_x, None, *grads


def cross_entropy(logits: Tensor, targets: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The summed loss, and softmax(logits) - onehot(targets) in the type of the logits."""
    log_p = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    loss = F.nll_loss(log_p, targets, reduction="sum")
    if not with_gradient:
        return loss, None
    p = log_p.exp_()
    p[torch.arange(len(p), device=p.device), targets] -= 1
    return loss, p.to(logits.dtype)
