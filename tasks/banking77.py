"""banking77 (Casanueva et al. 2020; CC BY 4.0): a bank customer's question -> the name of one of 77 intents.

The model writes the name. Each example has one right name and one written name, so accuracy is micro-averaged F1.
"""
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tasks.generative import GenerativeTask
from tasks.rows import read_rows
from tasks.task import Example, Splits, shuffled

HERE = Path(__file__).parent / "banking77_data"


@cache
def intents() -> frozenset[str]:
    return frozenset(intent_words(name) for name in json.loads((HERE / "categories.json").read_text()))


def intent_words(category: str) -> str:
    """`Refund_not_showing_up` -> `refund not showing up`: what the model learns to write, in words it knows."""
    return " ".join(category.lower().replace("_", " ").split())


class Banking77(GenerativeTask):
    name, metric = "banking77", "accuracy"
    protocol = "greedy, first line; case, underscores and white space do not count"

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """The published train and test files; a tenth of train (plr.txt Sec. 3.1) is held out for validation."""
        rows = shuffled(self._examples(data or HERE / "train.jsonl"), seed)[:limit]
        n_validation = max(1, len(rows) // 10)
        test = self._examples(test_data or HERE / "test.jsonl")
        return Splits(train=rows[n_validation:], validation=rows[:n_validation], test=test)

    def _examples(self, path: Path) -> list[Example]:
        return [Example(prompt=f"{row['text'].strip()}\nIntent:", answer=intent_words(row["category"]))
                for row in read_rows(path, ("text", "category"))]

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        """accuracy; invalid: names no intent."""
        written = intent_words(line["text"])
        return {"accuracy": float(written == row.answer), "invalid": float(written not in intents())}

    def other_scores(self, rows: Sequence[Example], lines: Sequence[dict]) -> dict[str, float]:
        """macro_f1: mean of F1 over the intents that occur in the gold answers."""
        return {"macro_f1": macro_f1([intent_words(line["text"]) for line in lines], [row.answer for row in rows])}


def macro_f1(written: Sequence[str], gold: Sequence[str]) -> float:
    """Mean over the classes of `gold` of 2 * right / (times written + times gold)."""
    right = Counter(g for w, g in zip(written, gold) if w == g)
    n_written, n_gold = Counter(written), Counter(gold)
    return sum(2 * right[c] / (n_written[c] + n_gold[c]) for c in n_gold) / len(n_gold)
