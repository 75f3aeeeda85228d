"""banking77 (Casanueva et al. 2020; CC BY 4.0): a bank customer's question -> the name of one of 77 intents.

The model writes the name. Each example has one right name and one written name, so accuracy is micro-averaged F1.
"""
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tasks.rows import read_rows
from tasks.task import Example, Splits, Task, shuffled

HERE = Path(__file__).parent / "banking77_data"


def intent_words(category: str) -> str:
    """`Refund_not_showing_up` -> `refund not showing up`: what the model learns to write, in words it knows."""
    return " ".join(category.lower().replace("_", " ").split())


class Banking77(Task):
    name, metric = "banking77", "accuracy"

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """The published train and test files; a tenth of train (plr.txt Sec. 3.1) is held out for validation."""
        rows = shuffled(self._examples(data or HERE / "train.jsonl"), seed)[:limit]
        n_validation = max(1, len(rows) // 10)
        test = self._examples(test_data or HERE / "test.jsonl")
        return Splits(train=rows[n_validation:], validation=rows[:n_validation], test=test)

    def _examples(self, path: Path) -> list[Example]:
        return [Example(prompt=f"{row['text'].strip()}\nIntent:", answer=intent_words(row["category"]))
                for row in read_rows(path, ("text", "category"))]

    def example_scores(self, predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
        return [float(intent_words(text) == example.answer) for text, example in zip(predictions, examples, strict=True)]

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """accuracy, macro_f1 (mean of F1 over the intents that occur in the gold answers), invalid (share of
        predictions that name no intent)."""
        intents = {intent_words(name) for name in json.loads((HERE / "categories.json").read_text())}
        written = [intent_words(text) for text in predictions]
        gold = [example.answer for example in examples]
        n = len(gold)
        return {"accuracy": sum(self.example_scores(predictions, examples)) / n,
                "macro_f1": macro_f1(written, gold),
                "invalid": sum(w not in intents for w in written) / n}


def macro_f1(written: Sequence[str], gold: Sequence[str]) -> float:
    """Mean over the classes of `gold` of 2 * right / (times written + times gold)."""
    right = Counter(g for w, g in zip(written, gold) if w == g)
    n_written, n_gold = Counter(written), Counter(gold)
    return sum(2 * right[c] / (n_written[c] + n_gold[c]) for c in n_gold) / len(n_gold)
