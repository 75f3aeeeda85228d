"""Bitext customer support (CDLA-Sharing 1.0): a customer's request -> its intent (`bitext`), or the reply to it (`bitext-response`).

Both published schemas are read: `instruction`, `category`, `intent`, `response` (27K responses), and `utterance`, `intent` (intent detection,
which has no replies).
"""
from collections.abc import Collection
from pathlib import Path

from tasks.free_text import FreeTextTask
from tasks.labels import LabelTask, intent_words
from tasks.rows import read_rows
from tasks.task import Example, Splits, one_tenth, shuffled


class Bitext(LabelTask):
    name, needs_data = "bitext", True

    def __init__(self):
        self.intents: set[str] = set()  # of the files that `splits` has read

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        every = self._examples(data)
        test = self._examples(test_data) if test_data else []
        self.intents = {example.answer for example in every + test}
        return tenths(every, test, limit, seed)

    def _examples(self, path: Path) -> list[Example]:
        asked = "utterance" if "utterance" in read_rows(path, ())[0] else "instruction"
        return [Example(f"{row[asked].strip()}\nIntent:", intent_words(row["intent"])) for row in read_rows(path, (asked, "intent"))]

    def labels(self) -> Collection[str]:
        return self.intents


class BitextResponse(FreeTextTask):
    name, needs_data = "bitext-response", True

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        return self.checked(tenths(self._examples(data), self._examples(test_data) if test_data else [], limit, seed))

    def _examples(self, path: Path) -> list[Example]:
        return [Example(f"{row['instruction'].strip()}\nReply:", row["response"].strip()) for row in read_rows(path, ("instruction", "response"))]


def tenths(every: list[Example], test: list[Example], limit: int | None, seed: int) -> Splits:
    """A tenth for validation, and a further one for test where there is no test file."""
    validation, rest = one_tenth(shuffled(every, seed)[:limit])
    if not test:
        test, rest = one_tenth(rest)
    return Splits(rest, validation, test)
