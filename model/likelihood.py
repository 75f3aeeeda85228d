"""Log-likelihoods of continuations: how probable a model finds each of several continuations of a text.

    log p(continuation | context) = sum over its tokens of log softmax(logits)[token], natural logarithm, in float32

Multiple-choice questions share text. All choices of a question follow one context, and many contexts begin with the
same worked examples. Shared text is computed once:

- the prefix that all questions of a batch share: once per batch, and not again while the next batches begin with it;
- the stem that all choices of a question share: once per question;
- the rest: once per choice.

| code name | meaning |
|---|---|
| `Pair` | token ids of a context and of its continuation |
| row | the model's input for a pair: all but the last token. Choices of one token (A, B, C, D) share a row |
| stem | common start of all rows of a question, up to the first position whose logits are used |
| `prefix` | common start of all stems of a batch, or nearly all of it |
| end | what a row has after prefix and stem |
| `Branch` | keys and values of sequences that extend other sequences |

Where context and continuation are cut, and how long texts are shortened, follows lm-evaluation-harness 0.4.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.llama import Llama
from model.padding import pad_right
from model.tokenizer import Tokenizer

SHORTEST_PREFIX = 16  # tokens; a shorter prefix costs more as a pass of its own than it saves
TOKENS_AT_ONCE = 384  # of ends that a CPU reads in one pass: ends of near-equal length need little padding
PLACES_AT_ONCE = 256  # positions per vocabulary projection: bounds memory by 256 x vocabulary
LOGITS_AT_ONCE = 2 ** 20  # per softmax on a CPU: 4 MB in float32 stay in its cache. 512 x 49,152 logits: 108 to 16 ms


@dataclass(frozen=True)
class Pair:
    context: list[int]       # at least one token
    continuation: list[int]  # at least one token


def encode_pairs(tokenizer: Tokenizer, contexts: Sequence[str], continuations: Sequence[str], empty: int) -> list[Pair]:
    """One pair per continuation, with the context of the same index, or with the only context.

    Whitespace at the end of a context moves to the continuation. The continuation's ids are those that it adds to the
    ids of the context: `encode(context + continuation)[len(encode(context)):]`.
    empty: the token that replaces an empty context. Raises ValueError if a continuation adds no token."""
    contexts = list(contexts) * (len(continuations) if len(contexts) == 1 else 1)
    kept = [context.rstrip() for context in contexts]
    alone = {context: tokenizer.encode(context) if context else [empty] for context in dict.fromkeys(kept)}
    return [Pair(alone[k], added_ids(tokenizer, k, context[len(k):] + continuation, alone[k]))
            for k, context, continuation in zip(kept, contexts, continuations, strict=True)]


def added_ids(tokenizer: Tokenizer, context: str, continuation: str, context_ids: list[int]) -> list[int]:
    whole = tokenizer.encode(context + continuation)
    if not context and whole[:1] != context_ids:  # this tokenizer adds no begin token
        whole = context_ids + whole
    if len(whole) <= len(context_ids):
        raise ValueError(f"continuation {continuation!r} adds no token after {context[-40:]!r}")
    return whole[len(context_ids):]


def fitted(pair: Pair, positions: int) -> Pair:
    """The last `positions` + 1 tokens of context and continuation; the model does not read the very last one.

    A context that is too long loses its left end. Raises ValueError if the continuation alone is too long."""
    if len(pair.continuation) > positions:
        raise ValueError(f"a continuation of {len(pair.continuation)} tokens is longer than the model's {positions} "
                         f"positions")
    surplus = max(0, len(pair.context) + len(pair.continuation) - (positions + 1))
    return Pair(pair.context[surplus:], pair.continuation)


@torch.no_grad()
def log_likelihoods(model: Llama, questions: Sequence[Sequence[Pair]],
                    batch_size: int) -> Iterator[tuple[int, list[float]]]:
    """Yields (index of a question, log-likelihood of each of its pairs), batch by batch.

    A batch holds `batch_size` questions, with contexts of near-equal length. A prefix is computed once for a batch only
    if ALL its questions begin with it, and once for two batches only if every batch between them begins with it too. So
    call this once for each group of questions that begin alike."""
    length = [max(len(p.context) for p in pairs) for pairs in questions]
    order = sorted(range(len(questions)), key=length.__getitem__)
    prefix = Prefix([])
    for start in range(0, len(order), batch_size):
        numbers = order[start:start + batch_size]
        batch = QuestionBatch.of([questions[i] for i in numbers])
        prefix = read_prefix(model, batch, prefix)
        yield from zip(numbers, batch_log_likelihoods(model, batch, prefix), strict=True)


@dataclass(frozen=True)
class QuestionBatch:
    """Questions that are scored together."""
    questions: Sequence[Sequence[Pair]]
    rows: list[list[int]]         # inputs of the model
    parents: list[int]            # row -> its question
    row_of: list[list[int]]       # question, pair -> row
    stems: list[list[int]]        # one per question

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
    trunk = read_stems(model, batch, prefix)
    outputs = end_outputs(model, batch, trunk)
    scored, targets, sizes = [], [], []
    for pairs, chosen in zip(batch.questions, batch.row_of, strict=True):
        for pair, row in zip(pairs, chosen, strict=True):
            first = len(pair.context) - 1 - trunk.lengths[row]
            scored.append(outputs[row][first:first + len(pair.continuation)])
            targets += pair.continuation
            sizes.append(len(pair.continuation))
    log_p = token_log_probabilities(model, torch.cat(scored), targets).double()
    sums = iter(part.sum().item() for part in log_p.split(sizes))
    return [[next(sums) for _ in pairs] for pairs in batch.questions]


def common_start(rows: Sequence[list[int]]) -> list[int]:
    """The longest common start of all rows. `common_start([[1, 2, 3], [1, 2, 4]]) -> [1, 2]`"""
    # Every row lies between the least and the greatest in order, so it begins with what those two share.
    first, last = min(rows), max(rows)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


class Branch:
    """Keys and values of sequences that extend those of a trunk: sequence i extends the trunk's sequence `parents[i]`.

    The trunk is stored once, however many sequences extend it. Trunk and branch are joined for one layer at a time. A
    branch replaces a `KVCache` for one pass.
    keep: False if nothing will extend this branch; its own keys and values are then dropped layer by layer."""

    def __init__(self, trunk: "Branch | None" = None, parents: Sequence[int] = (0,), keep: bool = True):
        self.trunk, self.parents, self.keep = trunk, list(parents), keep
        self.length = trunk.length if trunk else 0
        self.own: list[tuple[Tensor, Tensor]] = []  # k, v of each layer, (sequences, kv_heads, T, head_dim)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.keep:
            self.own.append((k, v))
        return self._after_trunk(layer, k, v)

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._after_trunk(layer, *self.own[layer])

    def first(self, length: int) -> "Branch":
        """The first `length` tokens, as a branch without a trunk."""
        cut = Branch()
        cut.length = length
        cut.own = [(k[:, :, :length], v[:, :, :length]) for k, v in map(self.layer, range(len(self.own)))]
        return cut

    def _after_trunk(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.trunk is None:
            return k, v
        old_k, old_v = self.trunk.layer(layer)
        return torch.cat((old_k[self.parents], k), dim=2), torch.cat((old_v[self.parents], v), dim=2)


@dataclass(frozen=True)
class Prefix:
    tokens: list[int]
    branch: Branch | None = None  # None: no tokens


def read_prefix(model: Llama, batch: QuestionBatch, before: Prefix) -> Prefix:
    """The common start of the batch's questions, or all but a few tokens of it.

    It extends the part that it shares with the prefix of the batch `before`. So text that all questions share is read
    once, even if the questions of one batch share a few more tokens by chance."""
    shared = common_start(batch.stems)
    same = common_start([shared, before.tokens])
    known = before.branch.first(len(same)) if same else None
    if len(shared) - len(same) < SHORTEST_PREFIX:
        return Prefix(same, known)
    new = Branch(known)
    model.hidden(torch.tensor([shared[len(same):]], device=model.device), cache=new)
    return Prefix(shared, new)


@dataclass(frozen=True)
class Trunk:
    """What the rows of a batch have before their ends."""
    branch: Branch | None
    parents: list[int]   # row -> sequence of the branch
    lengths: list[int]   # row -> its tokens before the end
    mask: Tensor | None  # real tokens, (sequences of the branch, its length); None: all of them


def read_stems(model: Llama, batch: QuestionBatch, prefix: Prefix) -> Trunk:
    """Stems are padded on the right. If no question has two rows, stems get no pass of their own."""
    n, stems = len(prefix.tokens), batch.stems
    if len(batch.rows) == len(stems) or max(map(len, stems)) == n:
        return Trunk(prefix.branch, [0] * len(batch.rows), [n] * len(batch.rows), None)
    branch = Branch(prefix.branch, [0] * len(stems))
    tokens, real = pad_right([stem[n:] for stem in stems], model.device)
    # Causality hides the padding from a stem. Rows that extend the stem need the mask.
    model.hidden(tokens, cache=branch)
    mask = torch.cat((real.new_ones(len(stems), n), real), dim=1)
    return Trunk(branch, batch.parents, [len(stems[i]) for i in batch.parents], mask)


def end_outputs(model: Llama, batch: QuestionBatch, trunk: Trunk) -> list[Tensor]:
    """Outputs of the last decoder layer for the end of each row, (T, hidden_size) with its padding on the right."""
    ends = [row[start:] for row, start in zip(batch.rows, trunk.lengths, strict=True)]
    found: dict[int, Tensor] = {}
    for rows in passes(list(map(len, ends)), TOKENS_AT_ONCE if model.device.type == "cpu" else None):
        tokens, mask = pad_right([ends[i] for i in rows], model.device)
        parents = [trunk.parents[i] for i in rows]
        if trunk.mask is not None:
            mask = torch.cat((trunk.mask[parents], torch.ones_like(mask)), dim=1)
        x = model.hidden(tokens, None if trunk.mask is None else mask, Branch(trunk.branch, parents, keep=False))
        found.update(zip(rows, x, strict=True))
    return [found[i] for i in range(len(ends))]


def passes(lengths: Sequence[int], tokens: int | None) -> list[list[int]]:
    """Rows by length, as many together as have at most `tokens` with their padding; None: all.

    `passes([9, 2, 1, 3], 9) -> [[2, 1, 3], [0]]`"""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and (tokens is None or (len(groups[-1]) + 1) * lengths[row] <= tokens):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def token_log_probabilities(model: Llama, x: Tensor, targets: Sequence[int]) -> Tensor:
    """log softmax(logits of x_i)[target_i], float32 (n,), for outputs of the last decoder layer x (n, hidden_size)."""
    chosen = torch.tensor(targets, device=x.device)
    parts = zip(x.split(PLACES_AT_ONCE), chosen.split(PLACES_AT_ONCE), strict=True)
    return torch.cat([chosen_log_softmax(model.logits(part), ids) for part, ids in parts])


def chosen_log_softmax(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits_i)[ids_i], float32 (n,)."""
    rows = max(1, LOGITS_AT_ONCE // logits.shape[1]) if logits.is_cpu else len(logits)
    parts = zip(logits.split(rows), ids.split(rows), strict=True)
    return torch.cat([part.float().log_softmax(-1).gather(1, i[:, None])[:, 0] for part, i in parts])
