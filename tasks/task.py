"""What every task is made of."""
import hashlib
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
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

    def fingerprints(self) -> dict[str, str]:
        """sha256 over every row of each split, in order."""
        return {name: hashlib.sha256(json.dumps([astuple(e) for e in part]).encode()).hexdigest() for name, part in vars(self).items()}


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


Kinds = type | tuple[type, ...]
KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def read_rows(path: Path, fields: Sequence[str] | Mapping[str, Kinds]) -> list[dict]:
    """Rows of a .jsonl file (an object a line) or a .json file (a list of objects), each holding `fields`: as text, or as what a mapping says.

    Raises FileNotFoundError, or ValueError naming the file, the row and what it lacks."""
    return [row for _, row in numbered_rows(path, fields)]


def numbered_rows(path: Path, fields: Sequence[str] | Mapping[str, Kinds]) -> list[tuple[str, dict]]:
    """The rows of `read_rows`, each with its place in the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file")
    kinds = fields if isinstance(fields, Mapping) else dict.fromkeys(fields, str)
    rows = []
    for place, row in _numbered_rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {place}: expected a JSON object, found {type(row).__name__}")
        for name, kind in kinds.items():
            allowed = kind if isinstance(kind, tuple) else (kind,)
            if type(row.get(name)) not in allowed:  # by type itself: to isinstance, true is a whole number
                found, wanted = ", ".join(row) or "nothing", " or ".join(KINDS[k] for k in allowed)
                raise ValueError(f"{path}, {place}: field {name!r} is missing or not {wanted} (fields there: {found})")
        rows.append((place, row))
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def _numbered_rows(path: Path):
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    if path.suffix == ".json":
        try:
            whole = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(whole, list):
            raise ValueError(f"{path}: expected a JSON list of rows")
        yield from ((f"row {i}", row) for i, row in enumerate(whole, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from None


def shuffled(items: Sequence, seed: int) -> list:
    """A seeded shuffle that leaves its input alone."""
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
