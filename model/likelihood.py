"""Log-likelihoods of continuations: how probable a model finds each of several ways to go on from a text.

    log p(continuation | context) = sum over its tokens of log softmax(logits)[token], natural logarithm, in float32

Questions of multiple choice repeat themselves: their choices follow one context, and contexts may begin with the same worked examples.
What the questions of a batch begin with is computed once, for it and for the next batches that begin with it; what the choices of one question
begin with once a question, and only the rest once a choice:

| code name | meaning |
|---|---|
| `Pair` | token ids of a context and of what follows it |
| row | what the model reads of a pair: all but the last token. Pairs that differ in that token only (A, B, C, D) are one row |
| stem | what all rows of a question begin with, up to the first place that is read |
| `prefix` | what all stems of a batch begin with, or nearly all of that |
| `Branch` | keys and values of sequences that go on from others |

The protocol (where context and continuation are cut, what is too long) is that of lm-evaluation-harness 0.4.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.llama import Llama
from model.padding import pad_right
from model.tokenizer import Tokenizer

SHORTEST_PREFIX = 16  # tokens; a shorter one is not worth a pass of its own through all layers
PLACES_AT_ONCE = 512  # of the vocabulary projection, so that memory does not grow with batch x length x vocabulary


@dataclass(frozen=True)
class Pair:
    context: list[int]       # one token at least
    continuation: list[int]  # one token at least


def encode_pairs(tokenizer: Tokenizer, contexts: Sequence[str], continuations: Sequence[str], empty: int) -> list[Pair]:
    """One for each continuation, after its own context or after the only one. White space that ends a context goes to the continuation,
    whose ids are what it adds to the ids of the context alone: `encode(context + continuation)[len(encode(context)):]`. `empty`: the
    token that stands for an empty context. Raises ValueError where a continuation adds no token."""
    contexts = list(contexts) * (len(continuations) if len(contexts) == 1 else 1)
    kept = [context.rstrip() for context in contexts]
    alone = {context: tokenizer.encode(context) if context else [empty] for context in dict.fromkeys(kept)}
    return [Pair(alone[k], added_ids(tokenizer, k, context[len(k):] + continuation, alone[k]))
            for k, context, continuation in zip(kept, contexts, continuations, strict=True)]


def added_ids(tokenizer: Tokenizer, context: str, continuation: str, context_ids: list[int]) -> list[int]:
    whole = tokenizer.encode(context + continuation)
    if not context and whole[:1] != context_ids:  # a tokenizer that puts no begin token of its own before a text
        whole = context_ids + whole
    if len(whole) <= len(context_ids):
        raise ValueError(f"the tokenizer sees no token in {continuation!r} after {context[-40:]!r}")
    return whole[len(context_ids):]


def fitted(pair: Pair, positions: int) -> Pair:
    """The last `positions` + 1 tokens of both (the last one is not read): a context loses its left end.
    Raises ValueError for a continuation that would lose its own."""
    if len(pair.continuation) > positions:
        raise ValueError(f"a continuation of {len(pair.continuation)} tokens is longer than the model's {positions} positions")
    surplus = max(0, len(pair.context) + len(pair.continuation) - (positions + 1))
    return Pair(pair.context[surplus:], pair.continuation)


@torch.no_grad()
def log_likelihoods(model: Llama, questions: Sequence[Sequence[Pair]], batch_size: int) -> Iterator[tuple[int, list[float]]]:
    """(number of a question, log-likelihood of each of its pairs), as they come: questions of near-equal length together, `batch_size` of
    them at a time. Only what ALL questions of a batch begin with is computed once for them, and again only where a batch between begins
    otherwise: give those together that begin alike."""
    length = [max(len(p.context) + len(p.continuation) for p in pairs) for pairs in questions]
    order = sorted(range(len(questions)), key=length.__getitem__)
    prefix = Prefix([])
    for start in range(0, len(order), batch_size):
        numbers = order[start:start + batch_size]
        batch = QuestionBatch.of([questions[i] for i in numbers])
        prefix = read_prefix(model, batch, prefix)
        yield from zip(numbers, batch_log_likelihoods(model, batch, prefix))


@dataclass(frozen=True)
class QuestionBatch:
    """Questions that are scored together."""
    questions: Sequence[Sequence[Pair]]
    rows: list[list[int]]         # what the model reads
    parents: list[int]            # the question of each row
    row_of: list[list[int]]       # question, pair -> row
    stems: list[list[int]]        # of each question

    @classmethod
    def of(cls, questions: Sequence[Sequence[Pair]]) -> "QuestionBatch":
        rows, parents, row_of, stems = [], [], [], []
        for i, pairs in enumerate(questions):
            read = [p.context + p.continuation[:-1] for p in pairs]
            distinct = list(map(list, dict.fromkeys(map(tuple, read))))
            row_of.append([len(rows) + distinct.index(row) for row in read])
            rows += distinct
            parents += [i] * len(distinct)
            stems.append(common_start(distinct)[:min(len(p.context) for p in pairs) - 1])
        return cls(questions, rows, parents, row_of, stems)


def batch_log_likelihoods(model: Llama, batch: QuestionBatch, prefix: "Prefix") -> list[list[float]]:
    x, done = last_pass(model, batch, prefix)
    places, targets, sizes = [], [], []
    for pairs, chosen in zip(batch.questions, batch.row_of):
        for pair, row in zip(pairs, chosen):
            first = len(pair.context) - 1 - done[row]
            places += [(row, first + j) for j in range(len(pair.continuation))]
            targets += pair.continuation
            sizes.append(len(pair.continuation))
    at = torch.tensor(places, device=model.device).unbind(1)
    sums = iter(part.sum().item() for part in token_log_probabilities(model, x[at], targets).double().split(sizes))
    return [[next(sums) for _ in pairs] for pairs in batch.questions]


def common_start(rows: Sequence[list[int]]) -> list[int]:
    """`common_start([[1, 2, 3], [1, 2, 4]]) -> [1, 2]`: all that lies between the first and the last in order begins as both do."""
    first, last = min(rows), max(rows)
    same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first[:same]


class Branch:
    """Keys and values of sequences that go on from those of a trunk: sequence i from the trunk's sequence `parents[i]`. The trunk is
    kept once, however many go on from it; a layer at a time is put together. Takes the place of a `KVCache` for one pass.
    `keep=False`: nothing will go on from here, so that what this pass adds is forgotten layer by layer."""

    def __init__(self, trunk: "Branch | None" = None, parents: Sequence[int] = (0,), keep: bool = True):
        self.trunk, self.parents, self.keep = trunk, list(parents), keep
        self.length = trunk.length if trunk else 0
        self.own: list[tuple[Tensor, Tensor]] = []  # of each layer, (sequences, kv_heads, T, head_dim)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.keep:
            self.own.append((k, v))
        return self._after_trunk(layer, k, v)

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._after_trunk(layer, *self.own[layer])

    def first(self, length: int) -> "Branch":
        """Of the first tokens only; a branch without a trunk."""
        cut = Branch()
        cut.length, cut.own = length, [(k[:, :, :length], v[:, :, :length]) for k, v in map(self.layer, range(len(self.own)))]
        return cut

    def _after_trunk(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.trunk is None:
            return k, v
        old_k, old_v = self.trunk.layer(layer)
        return torch.cat((old_k[self.parents], k), dim=2), torch.cat((old_v[self.parents], v), dim=2)


@dataclass(frozen=True)
class Prefix:
    tokens: list[int]
    branch: Branch | None = None  # None: of no tokens


def read_prefix(model: Llama, batch: QuestionBatch, before: Prefix) -> Prefix:
    """What the batch's questions begin with, or all but a few tokens of it. It goes on from the prefix of the batch before, as far as the two begin
    alike, so that nothing is read again that questions share but what two or three of one batch share by chance."""
    shared = common_start(batch.stems)
    same = common_start([shared, before.tokens])
    known = before.branch.first(len(same)) if same else None
    if len(shared) - len(same) < SHORTEST_PREFIX:
        return Prefix(same, known)
    new = Branch(known)
    model.hidden(torch.tensor([shared[len(same):]], device=model.device), cache=new)
    return Prefix(shared, new)


def last_pass(model: Llama, batch: QuestionBatch, prefix: Prefix) -> tuple[Tensor, list[int]]:
    """What the last block puts out for each row after its stem, (rows, T, hidden_size), padded on the right; and how many tokens of each row are
    not in it. Those of prefix and stems go into a cache only. Where no question has two rows, stems have no pass of their own."""
    rows, parents, stems = batch.rows, batch.parents, batch.stems
    n, trunk, mask = len(prefix.tokens), prefix.branch, None
    done = [n] * len(rows)
    if len(rows) > len(stems) and max(map(len, stems)) > n:
        trunk = Branch(trunk, [0] * len(stems))
        tokens, real = pad_right([stem[n:] for stem in stems], model.device)
        model.hidden(tokens, cache=trunk)  # causality keeps a stem from its padding; those that go on from it need the mask
        done = [len(stems[i]) for i in parents]
        mask = torch.cat((real.new_ones(len(rows), n), real[parents]), dim=1)
    else:
        parents = [0] * len(rows)
    tokens, real = pad_right([row[start:] for row, start in zip(rows, done)], model.device)
    if mask is not None:
        mask = torch.cat((mask, torch.ones_like(real)), dim=1)
    return model.hidden(tokens, mask, Branch(trunk, parents, keep=False)), done


def token_log_probabilities(model: Llama, x: Tensor, targets: Sequence[int]) -> Tensor:
    """log softmax(logits of x_i)[target_i], (n,) float32, for x (n, hidden_size)."""
    chosen = torch.tensor(targets, device=x.device)
    parts = zip(x.split(PLACES_AT_ONCE), chosen.split(PLACES_AT_ONCE))
    return torch.cat([model.logits(part).float().log_softmax(-1).gather(1, ids[:, None])[:, 0] for part, ids in parts])
