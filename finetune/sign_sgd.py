"""t-SignSGD, the optimizer of ternary matrices (Chen et al. 2025, LoTA-QAF).

    p <- clamp(p - sign(g) * [|g| > max(q, 1e-9)], -1, 1),   q = the sigma-quantile of |g| over the matrix

| steps | sigma |
|---|---|
| the first 80 % | rises linearly from 0.95 to 0.999 |
| the rest | rises linearly to 0.9999 |

There is no learning rate: a step of a ternary number is 1. sigma says how few numbers step. The paper's released code
also leaves out entries above the 0.99995-quantile while the norm of all gradients exceeds 10; the paper does not, and
neither does this file.
"""
from collections.abc import Callable, Iterable
from math import floor
from typing import Any

import torch
from torch import nn

FIRST, THEN, LAST, SHARE = 0.95, 0.999, 0.9999, 0.8
LEAST = 1e-9


def sigma(step: int, total: int, settings: Any = None) -> float:
    """Of step `step` of `total`; steps count from 0."""
    done, turn = step / max(1, total - 1), SHARE
    if done <= turn:
        return FIRST + (THEN - FIRST) * done / turn
    return THEN + (LAST - THEN) * (done - turn) / (1 - turn)


class SignSGD(torch.optim.Optimizer):
    """It keeps nothing from step to step. `sigma` of its groups is set before each."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        super().__init__(list(parameters), {"sigma": FIRST})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign() * (p.grad.abs() > threshold(p.grad, group["sigma"]))).clamp_(-1, 1)


def threshold(grad: torch.Tensor, sigma: float) -> torch.Tensor:
    """max(q, 1e-9), without a wait for the device. Between two entries, the lower one stands for q: no entry lies
    between."""
    size, n = grad.abs().flatten(), grad.numel()
    largest = size.topk(n - floor(sigma * (n - 1)), sorted=False).values
    return largest.amin().clamp_(min=LEAST)
