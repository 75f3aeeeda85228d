"""What every task is made of."""
import hashlib
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from model.llama import Llama
from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str


@dataclass(frozen=True)
class Encoded:
    """tokens[:prompt_length] is read, tokens[prompt_length:] is learned. Masking goes by this length, never by a token's
    id: an id that pads or ends a sequence may also stand inside a prompt."""
    tokens: list[int]
    prompt_length: int


@dataclass
class Splits:
    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list = field(default_factory=list)  # of whatever the task's own `answers` takes, a dataclass each
    left_out: dict[str, int] = field(default_factory=dict)  # why -> how many rows of the files are in no split

    def fingerprints(self) -> dict[str, str]:
        """sha256 over every row of each split, in order."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: hashlib.sha256(json.dumps([astuple(e) for e in part]).encode()).hexdigest() for name, part in parts.items()}


def encode_example(example: Example, tokenizer: Tokenizer, eos_id: int) -> Encoded:
    """Prompt, one space, answer, end token. The prompt's ids are those of the prompt alone, as at generation; the rest
    are what the whole text adds to them."""
    prompt = tokenizer.encode(example.prompt)
    whole = tokenizer.encode(f"{example.prompt} {example.answer}")
    return Encoded(prompt + whole[len(prompt):] + [eos_id], len(prompt))


@dataclass(frozen=True)
class Asking:
    """How test rows are put to a model, whatever the task."""
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]  # end-of-sequence tokens
    max_new_tokens: int
    batch_size: int
    desc: str = ""            # of the progress bar


class Task:
    """A data set, how a model is asked about it, and what its answers are worth. Subclasses set the names and define `splits`, `answers`
    and `marks`; GenerativeTask (generative.py) and ChoiceTask (choices.py) define `answers` for most.

    An answer is a line of predictions.jsonl: a dict with `prompt`, `gold`, and `text` or `choices` and `log_likelihoods`; `flags`, where it has
    any, say what was out of the ordinary (a prompt cut on the left, an empty answer) and are counted."""
    name: str
    metric: str | None = None  # the mark that curves and paired tests are of
    protocol: str              # how rows are put to the model and scored, in words; kept with every score
    protocols: dict[str, type["Task"]] = {}  # what --protocol offers, where there are several: tasks of their own
    template_version = 1       # of the prompts' wording, kept likewise: another wording is another number
    new_tokens: int | None = None  # how long an answer may be by the protocol; None: as long as the longest training row's
    formats: dict[str, str] = {}  # how scores are printed that are no shares of 1
    needs_data = False      # True where --data must name a file
    needs_test_data = False  # True where --test-data must
    trains = True           # False for a benchmark, which has test rows only

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        raise NotImplementedError

    def test_rows(self, test: Sequence, tokenizer: Tokenizer, longest: int) -> list:
        """The rows that `answers` gets, where they depend on the tokenizer and on the longest sequence."""
        return list(test)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int) -> list[Encoded]:
        return [encode_example(example, tokenizer, eos_id) for example in examples]

    def answers(self, model: Llama, rows: Sequence, asking: Asking) -> Iterator[tuple[int, dict]]:
        """(place in `rows`, line) of every row, in any order, as soon as it is there: what has come is kept if the rest is interrupted."""
        raise NotImplementedError

    def marks(self, row, line: dict) -> dict[str, float]:
        """What one answer is worth: numbers whose means over all rows are scores. 0 and 1 where an answer is wrong or right."""
        raise NotImplementedError

    def other_scores(self, rows: Sequence, lines: Sequence[dict]) -> dict[str, float]:
        """Scores that are no mean over the rows."""
        return {}

    def parts(self, rows: Sequence, lines: Sequence[dict]) -> dict[str, float]:
        """The metric of each part that the rows fall into by themselves (MMLU's subjects)."""
        return {}

    def scores(self, rows: Sequence, lines: Sequence[dict]) -> tuple[dict[str, float], dict[str, float]]:
        """Every score, and the standard errors of those that are means: sample standard deviation (n - 1) / sqrt(n)."""
        marks = [self.marks(row, line) for row, line in zip(rows, lines, strict=True)]
        columns = {name: [m[name] for m in marks] for name in (marks[0] if marks else {})}
        means = {name: statistics.fmean(values) for name, values in columns.items()}
        errors = {name: statistics.stdev(values) / len(values) ** 0.5 for name, values in columns.items() if len(values) > 1}
        return {**means, **self.other_scores(rows, lines)}, errors


def one_tenth(items: Sequence) -> tuple[list, list]:
    """The first tenth, of one item at least, and the rest: `one_tenth([1, 2, 3]) -> ([1], [2, 3])`."""
    n = max(1, len(items) // 10)
    return list(items[:n]), list(items[n:])


def shuffled(items: Sequence, seed: int) -> list:
    """A seeded shuffle that leaves its input alone."""
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
