"""Generation in batches with a KV cache: greedy, or sampled by temperature and top-p."""
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from model.finite import NotFinite, why_not_finite
from model.llama import Llama
from model.recorded_decoding import Caches, next_logits

# Logits (n, vocab_size) and the index of each row's prompt -> one token per row, (n,).
Choose = Callable[[Tensor, list[int]], Tensor]


def generate(model: Llama, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Collection[int],
             batch_size: int, desc: str = "generating", sampling: "Sampling | None" = None) -> list[list[int]]:
    """`generate_each`, with the answers in the order of the prompts."""
    answers = dict(generate_each(model, prompts, max_new_tokens, stop_ids, batch_size, desc, sampling))
    return [answers[i] for i in range(len(prompts))]


@torch.no_grad()
def generate_each(model: Llama, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Collection[int],
                  batch_size: int, desc: str = "generating", sampling: "Sampling | None" = None,
                  stopped: Callable[[list[int]], bool] = lambda answer: False) -> Iterator[tuple[int, list[int]]]:
    """Yields (index of the prompt, answer), batch by batch. Without `sampling` every token is the most likely one.

    An answer ends before one of `stop_ids`, after the token at which `stopped(answer)` is True, or at `max_new_tokens`.
    Prompts of similar length share a batch, padded on the left. A prompt that leaves too few of the model's positions
    for the answer loses its left end. Raises ValueError if `max_new_tokens` leaves no position for a prompt, and
    NotFinite, with the prompt's index, for logits that are not finite: the "most likely" of them means nothing."""
    room = model.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's "
                         f"{model.config.max_position_embeddings} positions; ask for fewer")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    choose = Sampler(sampling, len(prompts)) if sampling else most_likely
    caches = Caches(model, max_new_tokens)
    with tqdm(total=len(prompts), desc=desc, unit="row", disable=None, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start:start + batch_size]
            parts = [list(prompts[i])[-room:] for i in rows]
            yield from _generate_batch(caches, rows, parts, max_new_tokens, set(stop_ids), choose, stopped).items()
            bar.update(len(rows))


def _generate_batch(caches: Caches, rows: list[int], prompts: list[list[int]], max_new_tokens: int, stop_ids: set[int],
                    choose: Choose, stopped: Callable[[list[int]], bool]) -> dict[int, list[int]]:
    """The answer of each of `rows`. A sequence that has ended leaves the batch."""
    model, answers = caches.model, {row: list[int]() for row in rows}
    longest, read = max(map(len, prompts)), dict(zip(rows, prompts, strict=True))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts], device=model.device)
    cache, texts = caches.new(len(prompts), longest + max_new_tokens), tokens
    for _ in range(max_new_tokens):
        if model.config.rotates_anew_at(mask.shape[1]):
            tokens, cache.length = texts, 0
        logits = next_logits(model, tokens, mask, cache)
        if (row := not_finite(logits, rows)) is not None:
            raise NotFinite(f"the logits of the token after {len(read[row]) + len(answers[row])} others are not "
                            f"finite: {why_not_finite(model, read[row] + answers[row])}", row)
        new = choose(logits, rows)
        going = []
        for i, (row, token) in enumerate(zip(rows, new.tolist(), strict=True)):
            if token not in stop_ids:
                answers[row].append(token)
                if not stopped(answers[row]):
                    going.append(i)
        if not going:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=model.device)
            rows, new, mask, texts = [rows[i] for i in going], new[kept], mask[kept], texts[kept]
            cache.keep_rows(kept)
        tokens = new[:, None]
        texts = torch.cat((texts, tokens), dim=1)
        mask = torch.cat((mask, torch.ones_like(tokens, dtype=torch.bool)), dim=1)
    return answers


def not_finite(logits: Tensor, rows: list[int]) -> int | None:
    """The first of `rows` whose logits are not all finite. A sum of finite logits is finite but for overflow, and takes
    a fiftieth of the time of a look at each."""
    if logits.sum(-1).isfinite().all() or (finite := logits.isfinite().all(-1)).all():
        return None
    return rows[finite.tolist().index(False)]


# ---- which token comes next -----------------------------------------------------------------------------------------

def most_likely(logits: Tensor, rows: list[int]) -> Tensor:
    """Of equal ones the first. `max` is five times as fast as `argmax` in bfloat16."""
    return logits.max(-1).indices


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises ValueError for a temperature of 0 or less, and for a top_p outside (0, 1]."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} is not above 0; for the most likely token, do not sample")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not in (0, 1]")


class Sampler:
    """Draws each prompt's tokens from a generator of its own: an answer depends on the seed and on the prompt's index,
    not on its batch. Draws on the CPU, so that a seed gives the same numbers on every device."""

    def __init__(self, sampling: Sampling, prompts: int):
        self.sampling = sampling
        self.generators = [prompt_generator(sampling.seed, i) for i in range(prompts)]

    def __call__(self, logits: Tensor, rows: list[int]) -> Tensor:
        p = nucleus(tempered(logits.cpu(), self.sampling.temperature), self.sampling.top_p)
        drawn = [torch.multinomial(p_row, 1, generator=self.generators[row])
                 for p_row, row in zip(p, rows, strict=True)]
        return torch.cat(drawn).to(logits.device)


def prompt_generator(seed: int, prompt: int) -> torch.Generator:
    """Seeded by a hash of both. Their sum would give prompt 1 of seed 0 the random numbers of prompt 0 of seed 1."""
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), in float64.

    The largest logit is subtracted before the division, which then cannot overflow: the largest becomes
    0 / temperature = 0, however small the temperature."""
    below = logits.double() - logits.double().amax(-1, keepdim=True)
    return (below / temperature).softmax(-1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens whose probabilities reach top_p, scaled to sum to 1. All others get 0.

    A token belongs to the set if the more likely ones do not reach top_p, so the first always does.
    `nucleus([.5, .25, .25], .5) -> [1, 0, 0]`
    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, Sec. 3.1."""
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = torch.cat((torch.zeros_like(ranked[..., :1]), ranked.cumsum(-1)[..., :-1]), dim=-1)
    kept = ranked.where(before < top_p, 0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept / kept.sum(-1, keepdim=True))
