"""The table that train.py ends with and eval.py prints: one row a state of the model."""
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adapters.adapted import AdaptedLinear
from finetune.data import Job
from finetune.loop import mean_loss
from finetune.models import linear_names
from model.files import write_json
from model.llama import Llama
from tasks.batching import collate, split_list
from tasks.task import Asking, Encoded, Task

TAKEN_UP = "answers of an interrupted scoring, whose seconds are not counted"
COMPARED = 32  # validation rows on which logits are compared


@dataclass
class Row:
    state: str                   # base, quantized base, as trained, merged ...
    scores: dict[str, float]     # the task's; shares of 1, unless the task says otherwise
    validation_loss: float | None  # nats a target token; None: the task has no validation rows
    bits_per_weight: float       # of the decoder's linear layers, adapters included
    megabytes: float             # of the whole model
    logit_difference: float | None = None  # max |merged - as trained|, both computed in float32
    weight_error: float | None = None      # ||W - W_hat|| / ||W|| that a lossy step cost, over all target layers
    restoration_ratio: float | None = None  # ||W_l - W_k|| / ||delta_W|| of a restored base
    seconds: float = 0.0
    standard_errors: dict[str, float] = field(default_factory=dict)  # of those scores that are means over the test rows
    counts: dict[str, int] = field(default_factory=dict)             # test rows, and those that were out of the ordinary
    parts: dict[str, float] = field(default_factory=dict)            # the metric of each part of the test rows, where they fall into parts
    lines: list[dict] = field(default_factory=list, repr=False)      # what the model answered to each test row

    def to_json(self) -> dict:
        """The figures; what was answered goes into predictions.jsonl."""
        return {name: value for name, value in asdict(self).items() if name != "lines"}


def score_state(state: str, model: Llama, job: Job, batch_size: int) -> Row:
    start, taken_up = time.perf_counter(), len(job.kept.of(state)) if job.kept else 0
    model.eval()
    lines = answers_to_all(state, model, job, batch_size)
    scores, errors = job.task.scores(job.test, lines) if lines else ({}, {})
    parts = job.task.parts(job.test, lines)
    loss = mean_loss(model, job.validation, batch_size) if job.validation else None
    counts = {"rows": len(lines), **Counter(flag for line in lines for flag in line.get("flags", ()))}
    if taken_up:
        counts[TAKEN_UP] = taken_up
    return Row(state, scores, loss, bits_per_weight(model), stored_bytes([model]) / 1e6, seconds=time.perf_counter() - start,
               standard_errors=errors, counts=counts, parts=parts, lines=lines)


def answers_to_all(state: str, model: Llama, job: Job, batch_size: int) -> list[dict]:
    """The line of each test row. Those that an interrupted scoring has left are taken as they are."""
    found = job.kept.of(state) if job.kept else {}
    missing = [row for row in range(len(job.test)) if row not in found]
    asking = Asking(job.tokenizer, job.end_ids, job.max_new_tokens, batch_size, state)
    for place, line in job.task.answers(model, [job.test[row] for row in missing], asking) if missing else ():
        found[missing[place]] = line
        if job.kept:
            job.kept.add(state, missing[place], line)
    return [found[row] for row in range(len(job.test))]


def stored_bytes(modules: list[torch.nn.Module]) -> int:
    """Parameters and buffers, each counted once."""
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def bits_per_weight(model: Llama) -> float:
    """Stored bits of the decoder's linear layers, adapters included, over the number of their weights."""
    modules = [model.get_submodule(name) for name in linear_names(model, "all")]
    bases = [m.base if isinstance(m, AdaptedLinear) else m for m in modules]
    return 8 * stored_bytes(modules) / sum(m.in_features * m.out_features for m in bases)


@torch.no_grad()
def float32_logits(model: Llama, examples: list[Encoded]) -> list[Tensor]:
    """Logits at the target places, computed in float32 whatever the model otherwise computes in: what merging itself
    changes, without bfloat16's noise."""
    kept, model.dtype = model.dtype, torch.float32
    try:
        batches = [collate(part, model.device) for part in split_list(examples[:COMPARED], 8)]
        return [model(b.tokens, at=b.at) for b in batches]
    finally:
        model.dtype = kept


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float | None:
    """None where there were no rows to compare on."""
    return max(((x - y).abs().max().item() for x, y in zip(a, b, strict=True)), default=None)


OPTIONAL = {"validation loss": ("validation_loss", ".4f"), "bits a weight": ("bits_per_weight", ".3f"), "MB": ("megabytes", ".2f"),
            "max |logit difference|": ("logit_difference", ".1e"), "weight error": ("weight_error", ".1%"),
            "||W_l - W_k|| / ||delta_W||": ("restoration_ratio", ".3f")}  # columns that a table has where a row has them


def print_scores(rows: list[Row], title: str, task: Task) -> None:
    """The table, what its figures are, and the metric of each part that the rows fall into."""
    print_table(rows, title, task.formats)
    print(f"protocol: {task.protocol}" + (f"; the papers' rows are {task.metric}" if not task.trains and task.metric not in task.formats and rows else ""))
    if parts := list(dict.fromkeys(part for row in rows for part in row.parts)):
        print_columns(f"{task.metric} of each part", [["", *(row.state for row in rows)], *(
            [part, *(f"{row.parts[part]:.2%}" for row in rows)] for part in parts)])


def print_table(rows: list[Row], title: str, formats: dict[str, str] = {}) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    optional = {head: how for head, how in OPTIONAL.items() if any(getattr(row, how[0]) is not None for row in rows)}
    head = ["", *names, *optional]
    print_columns(title, [head, *([row.state, *(score_cell(row, name, formats.get(name)) for name in names),
                                   *(optional_cell(getattr(row, name), how) for name, how in optional.values())] for row in rows)])
    for row in rows:
        if odd := {what: n for what, n in row.counts.items() if what != "rows"}:
            print(f"{row.state}: of {row.counts['rows']} test rows, " + ", ".join(f"{n} with {what}" for what, n in odd.items()))


def score_cell(row: Row, name: str, how: str | None) -> str:
    """`79.19% ± 0.73`, the standard error behind where there is one, in the same unit; `how` of scores that are no shares of 1."""
    value, error = row.scores.get(name), row.standard_errors.get(name)
    if value is None:
        return "-"
    if how:
        return format(value, how) + ("" if error is None else f" ± {error:{how}}")
    return f"{value:.2%}" + ("" if error is None else f" ± {100 * error:.2f}")


def optional_cell(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def print_columns(title: str, lines: list[list[str]]) -> None:
    """Cells under each other, the first line a head; the first column on the left, figures on the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in [lines[0], ["-" * w for w in widths], *lines[1:]]:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip())


def save_table(rows: list[Row], path: Path, **facts) -> None:
    write_json(path, {**facts, "rows": [row.to_json() for row in rows]})
