"""Greedy generation in batches, with a KV cache."""
from collections.abc import Collection, Sequence

import torch
from tqdm import tqdm

from model.llama import Llama


@torch.no_grad()
def generate(model: Llama, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Collection[int],
             batch_size: int, desc: str = "generating") -> list[list[int]]:
    """The most likely next token, again and again, until one of `stop_ids` (not returned) or `max_new_tokens`.

    Prompts of similar length go together, padded on the left; the answers come back in the order of the prompts. A prompt
    that leaves no room for the answer within the model's positions loses its left end."""
    room = model.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for a prompt in a model of "
                         f"{model.config.max_position_embeddings} positions")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    with tqdm(total=len(prompts), desc=desc, unit="row", disable=None, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start:start + batch_size]
            _generate_batch(model, rows, [list(prompts[i])[-room:] for i in rows], max_new_tokens, set(stop_ids), answers)
            bar.update(len(rows))
    return answers


def _generate_batch(model: Llama, rows: list[int], prompts: list[list[int]], max_new_tokens: int, stop_ids: set[int],
                    answers: list[list[int]]) -> None:
    """Appends to `answers[row]`. A sequence that has stopped leaves the batch."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts], device=model.device)
    cache = model.new_cache(len(prompts), longest + max_new_tokens)
    last = torch.zeros_like(mask)
    last[:, -1] = True
    for _ in range(max_new_tokens):
        new = model(tokens, mask, cache, at=last).argmax(-1)
        going = [i for i, token in enumerate(new.tolist()) if token not in stop_ids]
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=model.device)
            rows, new, mask = [rows[i] for i in going], new[kept], mask[kept]
            cache.keep_rows(kept)
        for row, token in zip(rows, new.tolist()):
            answers[row].append(token)
        tokens, last = new[:, None], torch.ones_like(new[:, None], dtype=torch.bool)
        mask = torch.cat((mask, last), dim=1)
