"""The optimizer of a run, and what changes of it from step to step.

| `settings.optimizer` | file | set before each step |
|---|---|---|
| adamw | torch | `lr`, by `--lr-schedule` (schedule.py) |
| t-signsgd | sign_sgd.py | `sigma` |

The method chooses it: ternary numbers cannot take AdamW's steps.
"""
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from finetune.schedule import learning_rate
from finetune.sign_sgd import SignSGD, sigma

ADAMW, SIGN_SGD = "adamw", "t-signsgd"
RATES = {ADAMW: ("lr", learning_rate), SIGN_SGD: ("sigma", sigma)}
MOMENTS = {ADAMW: ("exp_avg", "exp_avg_sq"), SIGN_SGD: ()}  # what it keeps of each parameter, in its shape


def new_optimizer(parameters: Collection[nn.Parameter], settings: Any, fused: bool = False) -> torch.optim.Optimizer:
    """settings: a `TrainingConfig`. On a GPU, `fused` steps all parameters by one kernel, and keeps AdamW's count of
    steps there. Vectors do not decay."""
    if settings.optimizer == SIGN_SGD:
        return SignSGD(parameters)
    matrices, others = ([p for p in parameters if (p.ndim >= 2) is wide] for wide in (True, False))
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr, betas=(0.9, settings.beta2), fused=fused)


def rate_of_step(step: int, total: int, settings: Any) -> float:
    """The learning rate, or sigma, of step `step` of `total`; steps count from 0."""
    _, schedule = RATES[settings.optimizer]
    return schedule(step, total, settings)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, settings: Any) -> None:
    name, _ = RATES[settings.optimizer]
    for group in optimizer.param_groups:
        group[name] = rate
