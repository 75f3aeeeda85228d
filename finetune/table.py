"""The table that train.py ends with and eval.py prints: one row a state of the model."""
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adapters.adapted import AdaptedLinear
from finetune.job import Job
from finetune.loop import mean_loss
from finetune.models import linear_names
from model.files import write_json
from model.generate import generate
from model.llama import Llama
from tasks.batching import collate, split_list
from tasks.task import Encoded

COMPARED = 32  # validation rows on which logits are compared


@dataclass
class Row:
    state: str                   # base, quantized base, as trained, merged ...
    scores: dict[str, float]     # the task's, 0 to 1
    validation_loss: float       # nats a target token
    bits_per_weight: float       # of the decoder's linear layers, adapters included
    megabytes: float             # of the whole model
    logit_difference: float | None = None  # max |merged - as trained|, both computed in float32
    weight_error: float | None = None      # ||W - W_hat|| / ||W|| that a lossy step cost, over all target layers
    restoration_ratio: float | None = None  # ||W_l - W_k|| / ||delta_W|| of a restored base
    seconds: float = 0.0
    written: list[str] = field(default_factory=list, repr=False)  # what the model wrote for each test row

    def to_json(self) -> dict:
        """The figures; what was written goes into the run's predictions."""
        return {name: value for name, value in asdict(self).items() if name != "written"}


def score_state(state: str, model: Llama, job: Job, batch_size: int) -> Row:
    start = time.perf_counter()
    model.eval()
    scores, written = {}, []
    if job.test:
        prompts = [job.tokenizer.encode(example.prompt) for example in job.test]
        ids = generate(model, prompts, job.max_new_tokens, job.stop_ids, batch_size, desc=state)
        written = [first_line(job.tokenizer.decode(answer)) for answer in ids]
        scores = job.task.score(written, job.test)
    loss = mean_loss(model, job.validation, batch_size)
    return Row(state, scores, loss, bits_per_weight(model), stored_bytes([model]) / 1e6,
               seconds=time.perf_counter() - start, written=written)


def first_line(text: str) -> str:
    """`first_line(" card arrival\\nReply: ...") == "card arrival"`"""
    return text.strip().partition("\n")[0].rstrip()


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


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


OPTIONAL = {"max |logit difference|": ("logit_difference", ".1e"), "weight error": ("weight_error", ".1%"),
            "||W_l - W_k|| / ||delta_W||": ("restoration_ratio", ".3f")}  # columns that a table has where a row has them


def print_table(rows: list[Row], title: str) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    optional = {head: how for head, how in OPTIONAL.items() if any(getattr(row, how[0]) is not None for row in rows)}
    head = ["", *names, "validation loss", "bits a weight", "MB", *optional]
    print_columns(title, [head, *([row.state, *(f"{row.scores.get(n, float('nan')):.2%}" for n in names), f"{row.validation_loss:.4f}",
                                   f"{row.bits_per_weight:.3f}", f"{row.megabytes:.2f}",
                                   *(optional_cell(getattr(row, name), how) for name, how in optional.values())] for row in rows)])


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
