"""Encoded examples -> padded batches of similar length. The order depends on (seed, epoch) only."""
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.padding import pad_right
from tasks.task import Encoded

# Examples are sorted by length within a pool of so many batches: little padding, and the order is still random.
SORTED_TOGETHER = 32


@dataclass
class Batch:
    tokens: Tensor   # (B, T), padded on the right with 0; attention is causal, so no real token sees the padding
    at: Tensor       # (B, T) bool: True where the NEXT token is learned
    places: Tensor   # (n,): the same places, counted through all rows. A GPU would have to wait for their number
    targets: Tensor  # (n,): those next tokens, n = at.sum()


def collate(examples: Sequence[Encoded], device: torch.device | str = "cpu", multiple: int = 1) -> Batch:
    """T = longest - 1, because the last token of an example is only a target and the first is only an input. Rounded up
    to a multiple of `multiple`."""
    tokens, at = pad_right([e.tokens[:-1] for e in examples])
    if more := -tokens.shape[1] % multiple:
        tokens, at = (F.pad(t, (0, more)) for t in (tokens, at))
    for row, e in enumerate(examples):
        at[row, :e.prompt_length - 1] = False
        for start, end in e.read:
            at[row, start - 1:end - 1] = False
    targets = torch.tensor([e.tokens[place] for e in examples for place in e.learned])
    places = at.flatten().nonzero()[:, 0]
    return Batch(*(moved(t, device) for t in (tokens, at, places, targets)))


def moved(t: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`. The processor does not wait for the copy to a GPU."""
    return t.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else t.to(device)


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every index once, in batches of similar length. The batches are in random order."""
    rng = random.Random(f"{seed}-{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    pool = batch_size * SORTED_TOGETHER
    order = [i for start in range(0, len(order), pool)
             for i in sorted(order[start:start + pool], key=lengths.__getitem__)]
    batches = split_list(order, batch_size)
    rng.shuffle(batches)
    return batches


def split_list(items: Sequence, size: int) -> list[list]:
    """`split_list([1, 2, 3], 2) -> [[1, 2], [3]]`"""
    return [list(items[start:start + size]) for start in range(0, len(items), size)]
