"""What one state of a model scores: one row of the table."""
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from adapters.held import dense_weights
from adapters.rounding import MUCH, NOTICED, TrainingLost
from finetune.data import PreparedData
from finetune.loop import mean_loss
from finetune.run import Run
from finetune.size import bits_per_weight
from finetune.stop import STOP
from model import processes
from model.llama import Llama
from quant.linear import stored_bytes
from scoring.resume import KeptAnswers
from scoring.state import State
from tasks.batching import collate, split_list
from tasks.task import Asking, Encoded

TAKEN_UP = "answers of an interrupted scoring, whose seconds are not counted"
COMPARED = 32  # validation rows on which logits are compared


@dataclass
class Row:
    state: State
    scores: dict[str, float]       # the task's; shares of 1, unless the task says otherwise
    validation_loss: float | None  # nats a target token; None: the task has no validation rows
    bits_per_weight: float         # of the decoder's linear layers, adapters included
    megabytes: float               # of the whole model
    logit_difference: float | None = None   # max |merged - as trained|, both computed in float32
    weight_error: float | None = None       # ||W - W_hat|| / ||W|| of a lossy step, over all target layers
    training_lost: float | None = None      # ||rounding|| / ||delta_W|| of a merge to 16 bits
    restoration_ratio: float | None = None  # ||W_l - W_k|| / ||delta_W|| of a restored base
    codes_moved: float | None = None        # the share of the codes of the adapted layers that the merge changed
    layers_moved: dict[str, float] = field(default_factory=dict)     # the same, layer by layer
    seconds: float = 0.0
    standard_errors: dict[str, float] = field(default_factory=dict)  # of scores that are means over the test rows
    counts: dict[str, int] = field(default_factory=dict)             # test rows, and those out of the ordinary
    parts: dict[str, float] = field(default_factory=dict)            # the metric of each part of the test rows
    lines: list[dict] = field(default_factory=list, repr=False)      # what the model answered to each test row

    @property
    def noticed_loss(self) -> float | None:
        """`training_lost`, if it is large enough to be shown."""
        return self.training_lost if (self.training_lost or 0.0) >= NOTICED else None

    def to_json(self) -> dict:
        """The figures. The answers go into predictions.jsonl."""
        figures = {name: value for name, value in asdict(self).items() if name not in ("state", "lines")}
        return {"state": self.state.key, "title": self.state.title, **asdict(self.state), **figures}


@dataclass(frozen=True)
class Scoring:
    """What every state of a model is scored with."""
    data: PreparedData
    batch_size: int
    kept: KeptAnswers | None = None  # answers of the same command before an interruption
    asked: Mapping[str, object] = field(default_factory=dict)  # flags that answers depend on, whatever the state
    scored: dict[str, State] = field(default_factory=dict)     # by key
    models: Run | None = None        # where merged models and their reports go; None: they are not kept
    missing: dict[str, str] = field(default_factory=dict)      # states that could not be scored, and why

    def begin(self, state: State) -> None:
        """Raises ValueError if another state has had this key: its answers would be taken for those of this one."""
        if other := self.scored.get(state.key):
            raise ValueError(f"two states share the key {state.key}: {other.title!r} and {state.title!r}; score them "
                             f"by two commands")
        self.scored[state.key] = state


def score_state(state: State, model: Llama, scoring: Scoring) -> Row:
    data, start = scoring.data, time.perf_counter()
    scoring.begin(state)
    taken_up = processes.by_first(lambda: len(scoring.kept.of(state.key)) if scoring.kept else 0)
    model.eval()
    with dense_weights(model):
        lines = answers_to_all(state, model, scoring)
        loss = mean_loss(model, data.validation, scoring.batch_size) if data.validation else None
    scores, errors = data.task.scores(data.test, lines) if lines else ({}, {})
    parts = data.task.parts(data.test, lines)
    counts = {"rows": len(lines), **Counter(flag for line in lines for flag in line.get("flags", ()))}
    if taken_up:
        counts[TAKEN_UP] = taken_up
    return Row(state, scores, loss, bits_per_weight(model), stored_bytes([model]) / 1e6,
               seconds=time.perf_counter() - start, standard_errors=errors, counts=counts, parts=parts, lines=lines)


def answers_to_all(state: State, model: Llama, scoring: Scoring) -> list[dict]:
    """The line of each test row. Those of an interrupted scoring are not asked again. Several processes share the rows,
    and all of them get all lines."""
    data, kept = scoring.data, scoring.kept
    found = dict(processes.by_first(lambda: list(kept.of(state.key).items() if kept else ())))
    missing = processes.share([row for row in range(len(data.test)) if row not in found])
    new: dict[int, dict] = {}
    asking = Asking(data.tokenizer, data.end_ids, data.max_new_tokens, scoring.batch_size, state.title)
    for place, line in data.task.answers(model, [data.test[row] for row in missing], asking) if missing else ():
        STOP.check()  # a signal that came while the answer was scored may have changed its score
        new[missing[place]] = line
        if kept:
            kept.add(state.key, missing[place], line)
    for lines in processes.gather(list(new.items())):
        found.update(lines)
    return [found[row] for row in range(len(data.test))]


@torch.no_grad()
def float32_logits(model: Llama, examples: Sequence[Encoded]) -> list[Tensor]:
    """Logits at the target places, computed in float32 whatever the model otherwise computes in: what merging itself
    changes, without bfloat16's noise."""
    kept, model.dtype = model.dtype, torch.float32
    try:
        batches = [collate(part, model.device) for part in split_list(examples[:COMPARED], 8)]
        return [model(b.tokens, at=b.at) for b in batches]
    finally:
        model.dtype = kept


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float | None:
    """None if there were no rows to compare on."""
    return max(((x - y).abs().max().item() for x, y in zip(a, b, strict=True)), default=None)


def comparing(model: Llama, scoring: Scoring) -> Callable[[State], Row]:
    """What scores a later state of this model, its logits compared with those of now."""
    before = float32_logits(model, scoring.data.validation)

    def compared(state: State) -> Row:
        row = score_state(state, model, scoring)
        row.logit_difference = largest_difference(before, float32_logits(model, scoring.data.validation))
        return row
    return compared


def tell_moves(row: Row, shares: Mapping[str, float], sizes: Mapping[str, int]) -> None:
    """Into the row, and in two lines: how many codes an adapter moved. Says nothing of one that moves none. sizes: the
    weights of each layer."""
    if not shares:
        return

    def share_of(names: Iterable[str]) -> float:
        counted = list(names)
        return sum(shares[name] * sizes[name] for name in counted) / sum(sizes[name] for name in counted)
    row.layers_moved, row.codes_moved = dict(shares), share_of(shares)
    most, least = (choose(shares, key=shares.__getitem__) for choose in (max, min))
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in shares)
    print(f"{row.state.title}: {row.codes_moved:.1%} of the codes moved; most in {most} {shares[most]:.1%}, least in "
          f"{least} {shares[least]:.1%}")
    print("  by kind of layer: " + ", ".join(f"{kind} {share_of(n for n in shares if n.endswith(f'.{kind}')):.1%}"
                                             for kind in kinds) + "; layer by layer: layers_moved in the JSON")


def tell_loss(row: Row, lost: TrainingLost) -> None:
    """Into the row, and as a warning if the merge to 16 bits has lost much of what was trained."""
    tell_share(row, lost.share, f"{lost.words('the merged weights')}. The adapter beside its base loses nothing. "
                                f"Neither does an export by --dtype float32")


def tell_share(row: Row, share: float | None, words: str) -> None:
    row.training_lost = share
    if (share or 0.0) >= MUCH:
        print(f"WARNING: {row.state.title}: {words}")
