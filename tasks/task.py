"""The parts that every task is made of."""
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
    """tokens[:prompt_length] is read, tokens[prompt_length:] is learned.

    Masking uses this length, never a token's id: an id that pads or ends a sequence may also be part of a prompt."""
    tokens: list[int]
    prompt_length: int


@dataclass
class Splits:
    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list = field(default_factory=list)  # dataclass instances of the kind that the task's `answers` takes
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> number of rows of the files that are in no split

    def fingerprints(self) -> dict[str, str]:
        """sha256 over every row of each split, in order."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: hashlib.sha256(json.dumps([astuple(e) for e in part]).encode()).hexdigest()
                for name, part in parts.items()}


def encode_example(example: Example, tokenizer: Tokenizer, eos_id: int) -> Encoded:
    """Prompt, one space, answer, end token.

    The prompt's ids are those of the prompt alone, as at generation. The whole text adds the other ids."""
    prompt = tokenizer.encode(example.prompt)
    whole = tokenizer.encode(f"{example.prompt} {example.answer}")
    return Encoded(prompt + whole[len(prompt):] + [eos_id], len(prompt))


@dataclass(frozen=True)
class Asking:
    """How test rows of any task are given to a model."""
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]  # end-of-sequence tokens
    max_new_tokens: int
    batch_size: int
    desc: str = ""            # of the progress bar


class Task:
    """A data set, the way in which a model is asked about it, and the scores of its answers.

    Subclasses set the attributes and define `splits`, `answers` and `marks`. GenerativeTask (generative.py) and
    ChoiceTask (choices.py) define `answers` for most tasks.

    An answer is a line of predictions.jsonl: a dict with `prompt`, `gold`, and either `text` or `choices` and
    `log_likelihoods`. `flags`, if any, name what was unusual (a prompt cut on the left, an empty answer). They are
    counted."""
    name: str
    title: str                 # the task in a few words, for `train.py --list-tasks`
    licence: str               # of the data set
    rows: str                  # the fields that a row of --data and --test-data must have
    metric: str | None = None  # the mark that curves and paired tests use; None: the task has no scores
    protocol: str              # how rows are given to the model and scored, in words; stored with every score
    protocols: dict[str, type["Task"]] = {}  # the choices of --protocol, each a task of its own; empty: only one
    template_version = 1       # of the prompts' wording, stored with every score; a new wording gets a new number
    new_tokens: int | None = None  # limit of an answer in the protocol; None: the longest training answer's
    formats: dict[str, str] = {}  # score -> print format, for scores that are not shares of 1
    needs_data = False         # True if --data must be given
    needs_test_data = False    # True if --test-data must be given
    embedded = False           # True if the repository holds the data set, which is used where no file is given
    trains = True              # False for a benchmark, which has test rows only

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        raise NotImplementedError

    def test_rows(self, test: Sequence, tokenizer: Tokenizer, longest: int) -> list:
        """The rows that `answers` gets. They may depend on the tokenizer and on `longest`, in tokens."""
        return list(test)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int) -> list[Encoded]:
        return [encode_example(example, tokenizer, eos_id) for example in examples]

    def answers(self, model: Llama, rows: Sequence, asking: Asking) -> Iterator[tuple[int, dict]]:
        """Yields (place in `rows`, line) of every row, in any order, as soon as it is answered.

        Lines that were yielded are kept if the rest is interrupted."""
        raise NotImplementedError

    def marks(self, row, line: dict) -> dict[str, float]:
        """The scores of one answer, whose means over all rows are the task's scores. 0 is wrong and 1 is right."""
        raise NotImplementedError

    def other_scores(self, rows: Sequence, lines: Sequence[dict]) -> dict[str, float]:
        """Scores that are not a mean over the rows."""
        return {}

    def parts(self, rows: Sequence, lines: Sequence[dict]) -> dict[str, float]:
        """The metric of each part of the rows, where they have parts (MMLU's subjects)."""
        return {}

    def scores(self, rows: Sequence, lines: Sequence[dict]) -> tuple[dict[str, float], dict[str, float]]:
        """Every score, and the standard errors of the means: sample standard deviation (n - 1) / sqrt(n)."""
        marks = [self.marks(row, line) for row, line in zip(rows, lines, strict=True)]
        columns = {name: [m[name] for m in marks] for name in (marks[0] if marks else {})}
        means = {name: statistics.fmean(values) for name, values in columns.items()}
        errors = {name: statistics.stdev(values) / len(values) ** 0.5
                  for name, values in columns.items() if len(values) > 1}
        return {**means, **self.other_scores(rows, lines)}, errors


def one_tenth(items: Sequence) -> tuple[list, list]:
    """The first tenth, at least one item, and the rest: `one_tenth([1, 2, 3]) -> ([1], [2, 3])`."""
    n = max(1, len(items) // 10)
    return list(items[:n]), list(items[n:])


def shuffled(items: Sequence, seed: int) -> list:
    """A shuffled copy of `items`."""
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
