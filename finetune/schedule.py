"""How the learning rate rises and falls, and after which steps the validation loss is computed.

    lr(step) = lr * (step + 1) / rising                          the first `rising` steps, the share `warmup` of all
    lr(step) = lr * fall(step - rising, total - rising)          after them

| `--lr-schedule` | fall(done, falling) |
|---|---|
| cosine | (1 + cos(pi * done / falling)) / 2 |
| linear | 1 - done / falling |
| constant | 1 |
"""
import math
from collections.abc import Callable
from typing import Any

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda done, falling: 0.5 * (1 + math.cos(math.pi * done / falling)),
    "linear": lambda done, falling: 1 - done / falling,
    "constant": lambda done, falling: 1.0}


def learning_rate(step: int, total: int, settings: Any) -> float:
    """The rate of step `step` of `total`. `step` counts from 0; `settings` is a `TrainingConfig`."""
    rising = max(1, round(settings.warmup * total))
    if step < rising:
        return settings.lr * (step + 1) / rising
    return settings.lr * SCHEDULES[settings.lr_schedule](step - rising, max(1, total - rising))


def is_evaluated(step: int, total: int, per_epoch: int, every: int | None) -> bool:
    """Whether the validation loss is computed after `step` steps: at the end of each epoch, at the end of training, and
    after every `every` steps."""
    return step == total or step % per_epoch == 0 or every is not None and step % every == 0


def evaluations_left(step: int, total: int, per_epoch: int, every: int | None) -> int:
    """How many of the steps after `step` satisfy `is_evaluated`."""
    def multiples(of: int) -> int:
        return (total - 1) // of - step // of
    if step >= total:
        return 0
    of_epochs = multiples(per_epoch)
    return 1 + of_epochs + (multiples(every) - multiples(math.lcm(every, per_epoch)) if every else 0)
