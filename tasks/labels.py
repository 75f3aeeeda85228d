"""Tasks whose answer is the name of a label, which the model writes: accuracy, F1-micro and F1-macro."""
from collections import Counter
from collections.abc import Collection, Sequence

from tasks.generative import GenerativeTask
from tasks.task import Asking, Example

NO_LABEL = "a gold answer that names no label"


def intent_words(category: str) -> str:
    """`Refund_not_showing_up` -> `refund not showing up`: the model learns to write words that it knows."""
    return " ".join(category.lower().replace("_", " ").split())


class LabelTask(GenerativeTask):
    """Subclasses define `labels`, the names that exist."""
    metric = "accuracy"
    protocol = "greedy, first line; case, underscores and white space do not count"

    def labels(self) -> Collection[str]:
        raise NotImplementedError

    def row_flags(self, row: Example, asking: Asking) -> list[str]:
        return super().row_flags(row, asking) + [NO_LABEL] * (row.answer not in self.labels())

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        """`accuracy`, and `invalid`: 1 where the answer names no label."""
        written = intent_words(line["text"])
        return {"accuracy": float(written == row.answer), "invalid": float(written not in self.labels())}

    def other_scores(self, rows: Sequence[Example], lines: Sequence[dict]) -> dict[str, float]:
        written, gold = [intent_words(line["text"]) for line in lines], [row.answer for row in rows]
        return {"micro_f1": micro_f1(written, gold, self.labels()), "macro_f1": macro_f1(written, gold)}


def micro_f1(written: Sequence[str], gold: Sequence[str], labels: Collection[str]) -> float:
    """2 * right / (rows + rows in which a label was written): precision and recall over all rows and labels together.

    It equals the accuracy where every answer names a label. An answer that names none is missing, not wrong."""
    right, named = sum(w == g for w, g in zip(written, gold, strict=True)), sum(w in labels for w in written)
    return 2 * right / (len(gold) + named)


def macro_f1(written: Sequence[str], gold: Sequence[str]) -> float:
    """Mean over the classes of `gold` of 2 * right / (times written + times gold)."""
    right = Counter(g for w, g in zip(written, gold, strict=True) if w == g)
    n_written, n_gold = Counter(written), Counter(gold)
    return sum(2 * right[c] / (n_written[c] + n_gold[c]) for c in n_gold) / len(n_gold)
