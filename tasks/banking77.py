"""banking77 (Casanueva et al. 2020; CC BY 4.0): a bank customer's question -> the name of one of 77 intents."""
import json
from functools import cache
from pathlib import Path

from tasks.labels import LabelTask, intent_words
from tasks.rows import read_rows
from tasks.task import Example, Splits, one_tenth, shuffled

HERE = Path(__file__).parent / "banking77_data"


@cache
def intents() -> frozenset[str]:
    return frozenset(intent_words(name) for name in json.loads((HERE / "categories.json").read_text()))


class Banking77(LabelTask):
    name, embedded = "banking77", True
    title, licence = "intent of a bank customer, of 77", "CC BY 4.0"
    rows = "text, category"

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """The published train and test files. A tenth of train is for validation (Kanda & Hatano, Sec. 3.1)."""
        validation, train = one_tenth(shuffled(self._examples(data or HERE / "train.jsonl"), seed)[:limit])
        return Splits(train, validation, self._examples(test_data or HERE / "test.jsonl"))

    def _examples(self, path: Path) -> list[Example]:
        return [Example(prompt=f"{row['text'].strip()}\nIntent:", answer=intent_words(row["category"]))
                for row in read_rows(path, ("text", "category"))]

    def labels(self) -> frozenset[str]:
        return intents()
