"""What an export is worth: it is read again and compared with the run, weight by weight and logit by logit."""
import math
from collections.abc import Callable
from dataclasses import dataclass
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
# Shares of a tensor's largest weight, and of the largest logit. The rounding of float32 stays below both.
SAME_WEIGHTS, SAME_LOGITS = 1e-5, 1e-3
# The texts on which logits and tokenizers are compared: prose, a table, digits and signs, accents and other alphabets,
# white space.
TEXTS = (
    "The customer asks why the card that was ordered two weeks ago hasn't arrived yet. I'll answer: it's on its way, "
    "and we've sent the tracking number to the address in your profile.",
    "CREATE TABLE head (age INTEGER, name VARCHAR)\nHow many heads of the departments are older than 56?\n"
    "SELECT COUNT(*) FROM head WHERE age > 56",
    "In 2024, 1234567 people paid $3.50 (+12.5%) for #42; x_1 = a[i]->b && c != \"d\"; "
    "see https://example.org/path?q=1 {or} <not>.",
    "Señora Müller naïvely ordered crème brûlée in Zürich — “déjà vu”, she said; "
    "Привет, мир! 你好，世界。 こんにちは 🙂 ﬁ e\u0301",
    "  leading spaces,   several   between,\ttabs\t\tand\n\n\nempty lines, and at the end some more   ")


@dataclass(frozen=True)
class Difference:
    """Between the run as trained and the export read again. Both are computed in float32."""
    largest_weight_difference: float
    in_tensor: str
    largest_logit_difference: float
    largest_logit: float   # of the run, for scale
    rows: int              # fixed texts
    tokens: int            # of all rows together


def token_rows(trained: Trained) -> list[list[int]]:
    """The fixed texts as tokens of the model's own tokenizer, cut to the number of positions that the model has."""
    longest = min(LONGEST, trained.config.max_position_embeddings)
    return [ids[:longest] for text in TEXTS if (ids := trained.tokenizer.encode(text))]


@torch.inference_mode()
def logits_of(model: Llama, rows: list[list[int]]) -> list[Tensor]:
    """The logits of each row, (tokens, vocab_size), computed in float32. All rows form one batch, so that each layer is
    dequantized once. Rows are padded on the right, which no earlier token attends to."""
    model.dtype = torch.float32
    batch = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return [logits[:len(row)] for logits, row in zip(model(batch), rows, strict=True)]


def compare(model: Llama, again: Llama, rows: list[list[int]], expected: Callable[[Llama, str], Tensor | None],
            tolerance: float) -> Difference:
    """Compares the run, `model`, with what was read, `again`.

    `expected(model, name)` is what a correctly written file holds for this tensor, bit for bit. It is None if that is
    not known; then the tensor may differ by `tolerance` times its largest value. Raises ValueError if a tensor differs,
    and if all tensors agree but the logits do not, which means that the config differs."""
    largest, where, relative = 0.0, "none", 0.0
    for name in tqdm(tensor_names(model.config), desc="comparing", unit="tensor", disable=None, leave=False):
        ours, theirs = dense_tensor(model, name), dense_tensor(again, name).float()
        check_finite(ours, name)
        exact = expected(model, name)
        if exact is not None and not torch.equal(exact.float(), theirs):
            raise ValueError(f"{name}: what was read again is not what was written; the export is deleted")
        difference = (ours.float() - theirs).abs().max().item()
        of_largest = difference / (ours.abs().max().item() or 1.0)
        if exact is None and not of_largest <= tolerance:
            raise ValueError(f"{name}: what was read again differs from the run by {difference:.3g}, "
                             f"{of_largest:.2g} of its largest value; the export is deleted")
        relative = max(relative, of_largest)
        if not difference <= largest:
            largest, where = difference, name
    before, after = (torch.cat(logits_of(m, rows)) for m in (model, again))
    difference, size = (before - after).abs().max().item(), before.abs().max().item()
    if not math.isfinite(difference) or (relative <= SAME_WEIGHTS and difference > SAME_LOGITS * size):
        raise ValueError(f"the logits of what was read again differ by {difference:.3g}, of logits up to {size:.3g}, "
                         f"although its weights are the run's; the export is deleted")
    return Difference(largest, where, difference, size, len(rows), sum(map(len, rows)))


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises ValueError for a tensor of the run that holds NaN or infinity: no comparison could hold it."""
    if bad := int((~tensor.isfinite()).sum()):
        raise ValueError(f"{name} of the model itself holds {bad} values of {tensor.numel()} that are not finite, so "
                         f"it cannot be exported; replace them in the base, and train again")


def check_tokenizer(trained: Trained, place: Path) -> None:
    """Raises ValueError if the tokenizer that was written encodes one of the fixed texts differently."""
    ours, theirs = trained.tokenizer, load_tokenizer(place)
    if other := [text for text in TEXTS if ours.encode(text) != theirs.encode(text)]:
        raise ValueError(f"the tokenizer that was read again gives other tokens for {other[0][:40]!r}; "
                         f"the export is deleted")


def files_of(place: Path) -> dict[str, dict]:
    """sha256 and size of a file, or of every file in a directory."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)) if path != place else path.name: {"sha256": sha256_of(path),
                                                                           "bytes": path.stat().st_size}
            for path in files}
