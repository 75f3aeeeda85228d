"""What every task is made of."""
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    test: list[Example] = field(default_factory=list)

    def fingerprints(self) -> dict[str, str]:
        """sha256 over every row of each split, in order."""
        return {name: hashlib.sha256(json.dumps([(e.prompt, e.answer) for e in part]).encode()).hexdigest()
                for name, part in vars(self).items()}


def encode_example(example: Example, tokenizer: Tokenizer, eos_id: int) -> Encoded:
    """Prompt, one space, answer, end token. The prompt's ids are those of the prompt alone, as at generation; the rest
    are what the whole text adds to them."""
    prompt = tokenizer.encode(example.prompt)
    whole = tokenizer.encode(f"{example.prompt} {example.answer}")
    return Encoded(prompt + whole[len(prompt):] + [eos_id], len(prompt))


class Task:
    """A data set and its score. Subclasses set the names and define `splits`, `example_scores` and `score`."""
    name: str
    metric: str | None = None  # the key of `score` that is the mean of `example_scores`: what curves and paired tests are of
    needs_data = False  # True where --data must name a file

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        raise NotImplementedError

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, eos_id: int) -> list[Encoded]:
        return [encode_example(example, tokenizer, eos_id) for example in examples]

    def example_scores(self, predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """One number a row; 0 and 1 where an answer is wrong or right."""
        raise NotImplementedError

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        raise NotImplementedError


def shuffled(items: Sequence, seed: int) -> list:
    """A seeded shuffle that leaves its input alone."""
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
