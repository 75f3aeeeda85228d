"""Bitext customer support (CDLA-Sharing 1.0): a request -> its intent (`bitext`) or its reply (`bitext-response`).

`bitext` reads both published schemas: `instruction`, `category`, `intent`, `response` (27K responses), and `utterance`,
`intent` (intent detection). The second has no replies, so `bitext-response` reads only the first.
"""
from collections.abc import Collection
from pathlib import Path

from tasks.free_text import FreeTextTask
from tasks.labels import LabelTask, intent_words
from tasks.rows import read_rows
from tasks.task import Example, Splits, one_tenth, shuffled


class Bitext(LabelTask):
    name, needs_data = "bitext", True
    title, licence = "intent of a customer's request", "CDLA-Sharing 1.0"
    rows = "instruction or utterance, intent"

    def __init__(self):
        self.intents: set[str] = set()  # of the files that `splits` has read

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        every = self._examples(data)
        test = self._examples(test_data) if test_data else []
        self.intents = {example.answer for example in every + test}
        return tenths(every, test, limit, seed)

    def _examples(self, path: Path) -> list[Example]:
        asked = "utterance" if "utterance" in read_rows(path, ())[0] else "instruction"
        return [Example(f"{row[asked].strip()}\nIntent:", intent_words(row["intent"]))
                for row in read_rows(path, (asked, "intent"))]

    def labels(self) -> Collection[str]:
        return self.intents


class BitextResponse(FreeTextTask):
    name, needs_data = "bitext-response", True
    title, licence = "reply to a customer's request", "CDLA-Sharing 1.0"
    rows = "instruction, response"

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        test = self._examples(test_data) if test_data else []
        return self.checked(tenths(self._examples(data), test, limit, seed))

    def _examples(self, path: Path) -> list[Example]:
        return [Example(f"{row['instruction'].strip()}\nReply:", row["response"].strip())
                for row in read_rows(path, ("instruction", "response"))]


def tenths(every: list[Example], test: list[Example], limit: int | None, seed: int) -> Splits:
    """A tenth of the rows is for validation, and another tenth for test where no test file is given."""
    validation, rest = one_tenth(shuffled(every, seed)[:limit])
    if not test:
        test, rest = one_tenth(rest)
    return Splits(rest, validation, test)
