"""One's own rows of text and label: the model writes the label's name."""
from collections.abc import Collection
from pathlib import Path

from tasks.labels import LabelTask, intent_words
from tasks.own_rows import LeftOut, own_rows, own_splits, whole
from tasks.rows import checked_row
from tasks.task import Example, Splits


class Classification(LabelTask):
    name, needs_data = "classification", True
    title, licence = "your own texts with a label", "yours"
    rows = "text, label (text or a whole number)"

    def __init__(self):
        self.names: set[str] = set()  # of the files that `splits` has read

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """Without --test-data, a further tenth of the rows is for test."""
        return own_splits(self._read, data, test_data, limit, seed, test_tenth=True)

    def _read(self, path: Path, left_out: LeftOut) -> list[Example]:
        rows, (text, label) = (found := own_rows(path, self.name))[0], found[1].fields
        named = [(place, checked_row(place, {**row, label: label_text(row[label])}, (text, label)))
                 for place, row in rows]
        kept = whole(named, (text, label), left_out)
        examples = [Example(f"{row[text].strip()}\nLabel:", intent_words(row[label])) for _, row in kept]
        self.names |= {example.answer for example in examples}
        spellings = {row[label] for _, row in kept}
        if len(spellings) > len(names := {intent_words(name) for name in spellings}):
            print(f"{path}: {len(spellings)} labels are {len(names)}: case, underscores and white space do not count")
        return examples

    def labels(self) -> Collection[str]:
        return self.names


def label_text(value: object) -> object:
    """A whole number is written as text. `label_text(3) == "3"`"""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
