"""What an export is worth: it is read again and put beside the run, weight by weight and logit by logit."""
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from interop.trained import Trained, dense_tensor, tensor_names
from model.files import sha256_of
from model.llama import Llama
from model.tokenizer import load_tokenizer

LONGEST = 64  # tokens of a row
SAME_WEIGHTS, SAME_LOGITS = 1e-5, 1e-3  # of the largest weight of a tensor, and of the largest logit: float32's own noise lies below
# What logits are compared on, and tokenizers: prose, a table, digits and signs, accents and other alphabets, white space.
TEXTS = (
    "The customer asks why the card that was ordered two weeks ago hasn't arrived yet. I'll answer: it's on its way, and we've sent the "
    "tracking number to the address in your profile.",
    "CREATE TABLE head (age INTEGER, name VARCHAR)\nHow many heads of the departments are older than 56?\n"
    "SELECT COUNT(*) FROM head WHERE age > 56",
    "In 2024, 1234567 people paid $3.50 (+12.5%) for #42; x_1 = a[i]->b && c != \"d\"; see https://example.org/path?q=1 {or} <not>.",
    "Señora Müller naïvely ordered crème brûlée in Zürich — “déjà vu”, she said; Привет, мир! 你好，世界。 こんにちは 🙂 ﬁ e\u0301",
    "  leading spaces,   several   between,\ttabs\t\tand\n\n\nempty lines, and at the end some more   ")


@dataclass(frozen=True)
class Difference:
    """Between the run as trained and what was read again, both computed in float32."""
    largest_weight_difference: float
    in_tensor: str
    largest_logit_difference: float
    largest_logit: float   # of the run, for scale
    rows: int              # fixed texts
    tokens: int            # of them all


def token_rows(trained: Trained) -> list[list[int]]:
    """The fixed texts in the model's own tokens, cut to what it has positions for."""
    longest = min(LONGEST, trained.config.max_position_embeddings)
    return [ids[:longest] for text in TEXTS if (ids := trained.tokenizer.encode(text))]


@torch.inference_mode()
def logits_of(model: Llama, rows: list[list[int]]) -> list[Tensor]:
    """Computed in float32, (tokens, vocab_size) a row. All rows at once, so that each layer is dequantized once; padding on the right is
    nothing that a token before it sees."""
    model.dtype = torch.float32
    batch = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return [logits[:len(row)] for logits, row in zip(model(batch), rows)]


def compare(model: Llama, again: Llama, rows: list[list[int]], expected: Callable[[Llama, str], Tensor | None], tolerance: float) -> Difference:
    """`model` is the run, `again` what was read. expected(model, name): what a file that was written without fault holds for this tensor,
    exactly; None where that is not known, and it may differ by `tolerance` times the tensor's largest value. Raises ValueError where a tensor is another,
    and where all are the run's but not what they compute: then a config says something else."""
    largest, where, relative = 0.0, "none", 0.0
    for name in tqdm(tensor_names(model.config), desc="comparing", unit="tensor", disable=None, leave=False):
        ours, theirs = dense_tensor(model, name), dense_tensor(again, name).float()
        exact = expected(model, name)
        if exact is not None and not torch.equal(exact.float(), theirs):
            raise ValueError(f"{name}: what was read again is not what was written; nothing is left of this export")
        difference = (ours.float() - theirs).abs().max().item()
        of_largest = difference / (ours.abs().max().item() or 1.0)
        if exact is None and not of_largest <= tolerance:
            raise ValueError(f"{name}: what was read again differs from the run by {difference:.3g}, {of_largest:.2g} of its largest value; nothing is left "
                             f"of this export")
        relative = max(relative, of_largest)
        if not difference <= largest:
            largest, where = difference, name
    before, after = (torch.cat(logits_of(m, rows)) for m in (model, again))
    difference, size = (before - after).abs().max().item(), before.abs().max().item()
    if not math.isfinite(difference) or (relative <= SAME_WEIGHTS and difference > SAME_LOGITS * size):
        raise ValueError(f"the logits of what was read again differ by {difference:.3g}, of logits up to {size:.3g}, though its weights are the run's; "
                         f"nothing is left of this export")
    return Difference(largest, where, difference, size, len(rows), sum(map(len, rows)))


def check_tokenizer(trained: Trained, place: Path) -> None:
    """Raises ValueError where the tokenizer that was written makes other tokens of the fixed texts."""
    ours, theirs = trained.tokenizer, load_tokenizer(place)
    if other := [text for text in TEXTS if ours.encode(text) != theirs.encode(text)]:
        raise ValueError(f"the tokenizer that was read again makes other tokens of {other[0][:40]!r}; nothing is left of this export")


def files_of(place: Path) -> dict[str, dict]:
    """sha256 and size of a file, or of every file in a directory."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)) if path != place else path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in files}


def report_lines(title: str, facts: dict, difference: Difference, files: dict[str, dict]) -> list[str]:
    """What is printed; the JSON holds the same."""
    return [title, *(f"  {name.replace('_', ' ')}: {value}" for name, value in facts.items()),
            f"  largest weight difference to the run: {difference.largest_weight_difference:.3g} (in {difference.in_tensor})",
            f"  largest logit difference to the run: {difference.largest_logit_difference:.3g}, of logits up to {difference.largest_logit:.3g} "
            f"({difference.rows} fixed rows, {difference.tokens} tokens, float32)",
            *(f"  sha256 {stated['sha256']}  {name}  {stated['bytes'] / 1e6:.2f} MB" for name, stated in files.items())]


def report_json(trained: Trained, form: str, facts: dict, difference: Difference, files: dict[str, dict]) -> dict:
    return {"format": form, "source": str(trained.path), "method": trained.run.config.method if trained.run else None, **facts,
            **asdict(difference),
            "files": files}
