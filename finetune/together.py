"""One optimizer step of several processes: the gradient of the whole batch, in each of them.

    dL/dp = sum over processes of d(summed loss of its rows)/dp / (targets of the WHOLE batch)

The gradients of all parameters are views of one buffer, which one all-reduce adds up. The step's loss and a request to
stop travel at its end, so that all processes see the same loss and stop after the same step.
"""
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from finetune.stop import STOP
from model import processes

Part = TypeVar("Part")
OF_THE_NETWORK = re.compile("gloo|nccl|connection|socket|timed out|peer", re.IGNORECASE)
NUMBERS = 3  # behind the gradients: the loss, how many processes are asked to stop, and by which signals (their sum)


class SharedGradients:
    """From now on the gradients of the parameters stay in place: a step sets them to zero, and not to None. Parameters
    become those of the first process."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        sizes = [p.numel() for p in parameters]
        self.buffer = parameters[0].new_zeros(sum(sizes) + NUMBERS)
        *parts, self.numbers = self.buffer.split([*sizes, NUMBERS])
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.view_as(p)
            processes.spread(p.data)

    def add_up(self, losses: Sequence[Tensor]) -> tuple[list[Tensor], int | None]:
        """Gradients become those of all rows. losses: of this process's parts; none if it has no rows. Returns the loss
        of all rows, and the signal that has asked a process to stop."""
        asked = STOP.asked or 0
        self.numbers.copy_(torch.tensor([0.0, float(asked > 0), asked]))
        if losses:
            self.numbers[0] = torch.stack(list(losses)).sum()
        processes.add_up(self.buffer)
        loss, requests, signals = self.numbers
        return [loss], round((signals / requests).item()) if requests else None

    def forget(self) -> None:
        self.buffer.zero_()


def beside(parts: Sequence[Part], most: int, spare: Part, shared: bool) -> list[tuple[Part, bool]]:
    """(part, whether it counts). Processes that share the base compute each layer at the same time: one that has fewer
    parts than the others computes `spare` along with them, which does not count."""
    counted = [(part, True) for part in parts]
    return counted + [(spare, False)] * (most - len(parts)) if shared else counted


@contextmanager
def gathering(shared: bool) -> Iterator[None]:
    """Raises Gone where torch, gathering a layer, finds that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not (shared and OF_THE_NETWORK.search(str(error))):
            raise
        with processes.talking():
            raise


def seed_dropout(seed: int, step: int) -> None:
    """Each process draws its own masks, step by step."""
    digest = hashlib.sha256(f"{seed} {step} {processes.rank()}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
