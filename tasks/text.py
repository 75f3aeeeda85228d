"""One's own texts, for continued pre-training: joined, and cut into windows.

Each row is one document. It gets the tokenizer's begin token, if it has one, and an end token. The documents are then
joined, so that a window may hold the end of one and the beginning of the next, and every token is learned once.
"""
from collections.abc import Sequence
from pathlib import Path

from model.tokenizer import Tokenizer
from tasks.batching import split_list
from tasks.own_rows import LeftOut, own_rows, own_splits, whole
from tasks.perplexity import Perplexity, Window
from tasks.rows import checked_row
from tasks.task import Encoded, Example, Splits


class OwnText(Perplexity):
    name, needs_data, needs_test_data, trains = "text", True, False, True
    title, licence = "your own texts: more pre-training", "yours"
    rows = "text"
    protocol = ("windows of {} tokens of the joined documents, which do not overlap, the first token of each only "
                "read, the last one left out if it is not whole")
    encodes_tokens = False
    usual_length = 512  # our choice: half a page. The default batch of 64 rows is then 32,768 tokens a step

    def splits(self, data: Path, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        return own_splits(self._read, data, test_data, limit, seed)

    def _read(self, path: Path, left_out: LeftOut) -> list[Example]:
        rows, layout = own_rows(path, self.name)
        fitting = [(place, checked_row(place, row, layout.fields)) for place, row in rows]
        return [Example("", row["text"]) for _, row in whole(fitting, layout.fields, left_out)]

    def meet(self, directory: Path, tokenizer: Tokenizer, end_id: int, longest: int) -> tuple[int, ...]:
        self.end_id, self.longest = end_id, longest
        return ()

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int) -> list[Encoded]:
        """The first token of a window is only read. Each window therefore begins with the last token of the one before
        it."""
        tokens = stream(examples, tokenizer, eos_id)
        return [Encoded(tokens[start:start + self.longest + 1], 1)
                for start in range(0, len(tokens) - 1, self.longest)]

    def test_rows(self, test: Sequence[Example], tokenizer: Tokenizer, longest: int) -> list[Window]:
        if not test:
            return []
        tokens = stream(test, tokenizer, self.end_id)
        self.protocol = type(self).protocol.format(min(longest, len(tokens)))
        return [Window(w) for w in split_list(tokens, longest) if len(w) == longest] or [Window(tokens)]


def stream(examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int) -> list[int]:
    return [token for example in examples for token in [*tokenizer.encode(example.answer), eos_id]]
