"""The table that train.py ends with and eval.py prints: one row a state of the model."""
import time
from dataclasses import asdict, dataclass, field

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
    seconds: float = field(default=0.0)


def score_state(state: str, model: Llama, job: Job, batch_size: int) -> Row:
    start = time.perf_counter()
    model.eval()
    scores = {}
    if job.test:
        prompts = [job.tokenizer.encode(example.prompt) for example in job.test]
        written = generate(model, prompts, job.max_new_tokens, job.stop_ids, batch_size, desc=state)
        scores = job.task.score([first_line(job.tokenizer.decode(ids)) for ids in written], job.test)
    loss = mean_loss(model, job.validation, batch_size)
    return Row(state, scores, loss, bits_per_weight(model), stored_bytes([model]) / 1e6,
               seconds=time.perf_counter() - start)


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


def print_table(rows: list[Row], title: str) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    head = ["", *names, "validation loss", "bits a weight", "MB", "max |logit difference|"]
    if any(row.weight_error is not None for row in rows):
        head.append("weight error")
    body = [[row.state, *(f"{row.scores.get(n, float('nan')):.2%}" for n in names), f"{row.validation_loss:.4f}",
             f"{row.bits_per_weight:.3f}", f"{row.megabytes:.2f}",
             "-" if row.logit_difference is None else f"{row.logit_difference:.1e}",
             "-" if row.weight_error is None else f"{row.weight_error:.1%}"][:len(head)] for row in rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    print(f"\n{title}")
    for line in [head, ["-" * w for w in widths], *body]:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))))


def save_table(rows: list[Row], path, **facts) -> None:
    write_json(path, {**facts, "rows": [asdict(row) for row in rows]})
