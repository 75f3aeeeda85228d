"""The parts that every task is made of."""
import hashlib
import json
import random
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, dataclass, field, fields
from itertools import dropwhile
from pathlib import Path
from typing import ClassVar

from model.llama import Llama
from model.tokenizer import Tokenizer, continuation


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str
    seam: ClassVar[str] = " "  # what stands between the two


@dataclass(frozen=True)
class Encoded:
    """tokens[:prompt_length] is read, tokens[prompt_length:] is learned, but for the places in `read`.

    Masking uses places, never a token's id: an id that pads or ends a sequence may also be part of a prompt."""
    tokens: list[int]
    prompt_length: int
    read: tuple[tuple[int, int], ...] = ()  # (from, before): only read, such as later questions

    @property
    def learned(self) -> Sequence[int]:
        """The places of `tokens` that are learned, in order."""
        if not self.read:
            return range(self.prompt_length, len(self.tokens))
        starts = (self.prompt_length, *(end for _, end in self.read))
        ends = (*(start for start, _ in self.read), len(self.tokens))
        return [place for part in map(range, starts, ends) for place in part]


@dataclass
class Splits:
    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list = field(default_factory=list)  # dataclass instances of the kind that the task's `answers` takes
    left_out: dict[str, int] = field(default_factory=dict)  # reason -> number of rows of the files that are in no split

    def fingerprints(self) -> dict[str, str]:
        """sha256 over every row of each split, in order."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: hashlib.sha256(json.dumps([compared(e) for e in part]).encode()).hexdigest()
                for name, part in parts.items()}


def compared(row) -> list:
    """The fields of a test row that say what it is. Its place in a file, for example, does not."""
    return [value for f, value in zip(fields(row), astuple(row), strict=True) if f.compare]


def encode_example(example: Example, tokenizer: Tokenizer, eos_id: int) -> Encoded:
    """Prompt, one space, answer, end token.

    The prompt's ids are those of the prompt alone, as at generation. The whole text adds the other ids. An end token
    that the answer brings with it is not written twice."""
    prompt = prompt_ids(example.prompt, tokenizer, eos_id)
    return Encoded(prompt + answer_ids(example, prompt, tokenizer, eos_id) + [eos_id], len(prompt))


def prompt_ids(text: str, tokenizer: Tokenizer, eos_id: int) -> list[int]:
    """What a model reads of a prompt: no second begin token where the text brings its own, and no end token at the end,
    after which the model has learned to write nothing, or something else."""
    begin = begin_ids(tokenizer, eos_id)
    return begin + without_end(with_one_begin(tokenizer.encode(text), begin)[len(begin):], eos_id)


def begin_ids(tokenizer: Tokenizer, eos_id: int) -> list[int]:
    """What the tokenizer puts before every text. It may also put the end token behind it, which does not count."""
    empty = tokenizer.encode("")
    return empty if tokenizer.encode("a")[:len(empty)] == empty else without_end(empty, eos_id)


def with_one_begin(ids: list[int], begin: list[int]) -> list[int]:
    n = len(begin)
    while n and ids[n:2 * n] == begin:
        ids = ids[n:]
    return ids


def without_end(ids: list[int], eos_id: int) -> list[int]:
    """`without_end([5, 2, 7, 2, 2], 2) == [5, 2, 7]`"""
    n = len(ids)
    while n and ids[n - 1] == eos_id:
        n -= 1
    return ids[:n]


def up_to_end(ids: list[int], tokenizer: Tokenizer, eos_id: int) -> list[int]:
    """Without an end token that only white space follows: of `ok<|im_end|>` and a line break, the ids of `ok`."""
    while eos_id in ids:
        last = len(ids) - 1 - ids[::-1].index(eos_id)
        if tokenizer.decode(ids[last + 1:], special=True).strip():
            break
        ids = ids[:last]
    return ids


def answer_ids(example: Example, prompt: list[int], tokenizer: Tokenizer, eos_id: int) -> list[int]:
    """The ids that space and answer add to the prompt's, without end tokens at their end.

    A tokenizer may join the prompt's last characters with the answer's first. The ids of the whole text then do not
    begin with the prompt's, and cutting them at its length would lose or repeat part of the answer. There, the answer
    is encoded alone. Raises ValueError if no such ids read as the answer after the prompt."""
    begin = begin_ids(tokenizer, eos_id)

    def encode(text: str) -> list[int]:
        return without_end(with_one_begin(tokenizer.encode(text), begin), eos_id)
    seam = example.seam
    whole = encode(f"{example.prompt}{seam}{example.answer}")
    if whole[:len(prompt)] == prompt:
        answer = list(dropwhile(lambda token: token == eos_id, whole[len(prompt):]))  # those ended the prompt's text
        return up_to_end(answer, tokenizer, eos_id)
    alone = [encode(text)[len(begin):] for text in dict.fromkeys((f"{seam}{example.answer}", example.answer))]
    for exactly in (True, False):
        for ids in alone:
            read = continuation(tokenizer, prompt, ids)
            if read == f"{seam}{example.answer}" if exactly else read.split() == example.answer.split():
                return up_to_end(ids, tokenizer, eos_id)
    raise ValueError(f"the answer {example.answer[:60]!r} cannot be told from its prompt {example.prompt[-60:]!r}: the "
                     "tokenizer joins the two, and gives no ids for the answer alone")


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
    usual_length: int | None = None  # tokens of a training row, or a window, without --max-length; None: finetune's
    needs_data = False         # True if --data must be given
    needs_test_data = False    # True if --test-data must be given
    encodes_tokens = True      # False if begin and end tokens in its rows are not treated as `encode_example` does
    embedded = False           # True if the repository holds the data set, which is used where no file is given
    converses = False          # True if its rows are conversations, which the model reads in its chat template
    trains = True              # False for a benchmark, which has test rows only
    trained_on: Collection[tuple[str, str]] = ()  # `same_row` of each training row, for tasks that look at it

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        raise NotImplementedError

    def meet(self, directory: Path, tokenizer: Tokenizer, end_id: int, longest: int) -> tuple[int, ...]:
        """Called once, before rows are encoded, with what the rows are for. Returns further tokens that end an answer.

        directory: the model's. longest: tokens of a training row, or of a window."""
        return ()

    def facts(self) -> dict:
        """What of `meet` a run has to remember, for its config.json."""
        return {}

    def leave_beside(self, directory: Path) -> None:
        """Writes into a run what a reader of its model has to know of the prompts."""

    def test_rows(self, test: Sequence, tokenizer: Tokenizer, longest: int) -> list:
        """The rows that `answers` gets. They may depend on the tokenizer and on `longest`, in tokens."""
        return list(test)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int) -> list[Encoded]:
        return [encode_example(example, tokenizer, eos_id) for example in examples]

    def row_flags(self, row, asking: Asking) -> list[str]:
        """What is unusual about a test row, whoever answers it: why it cannot score, or scores too well."""
        return []

    def texts(self, row) -> tuple[str, ...]:
        """All text of a test row that a model reads, piece by piece."""
        return ()

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


def same_row(prompt: str, answer: str) -> tuple[str, str]:
    """What two rows have in common that are the same, case and white space apart."""
    return " ".join(prompt.lower().split()), " ".join(answer.lower().split())


def one_tenth(items: Sequence) -> tuple[list, list]:
    """The first tenth, at least one item, and the rest: `one_tenth([1, 2, 3]) -> ([1], [2, 3])`."""
    n = max(1, len(items) // 10)
    return list(items[:n]), list(items[n:])


def shuffled(items: Sequence, seed: int) -> list:
    """A shuffled copy of `items`."""
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
