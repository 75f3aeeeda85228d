"""Benchmarks of multiple choice: a model's answer is the choice whose text it finds most probable after the context.

| code name | meaning |
|---|---|
| `contexts` | what stands before the choices: one for all of them, or one a choice (WinoGrande) |
| `shots` | worked examples, and what introduces them, that stand before every context |
| continuation | one space and the choice, as it is |
| acc | 1 where the gold choice has the largest log-likelihood, the first of equal ones |
| acc_norm | the same of log-likelihood / number of the choice's Unicode characters |

Source: lm-evaluation-harness 0.4.13; its own log-likelihoods are in tests/fixtures/lm_eval. `metric` is the one of the two that the papers'
rows are: blora.txt Table 4 does not name it; its 76.3 of HellaSwag can only be acc_norm (LLaMA-7B: acc 56, as in the table's first row), the
others are read as acc.
"""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from model.likelihood import Pair, encode_pairs, fitted, log_likelihoods
from model.llama import Llama
from tasks.generative import TRUNCATED
from tasks.rows import Kind, placed_rows
from tasks.task import Asking, Splits, Task


@dataclass(frozen=True)
class Question:
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    shots: tuple[str, ...] = ()
    subject: str = ""
    flags: tuple[str, ...] = ()  # what is out of the ordinary


class ChoiceTask(Task):
    """Subclasses say which `fields` a row has and what `question` it is."""
    metric = "acc"
    protocol = "as lm-evaluation-harness 0.4: log-likelihood of one space and the choice after the context, zero-shot"
    needs_test_data, trains = True, False
    fields: Mapping[str, Kind]

    def question(self, row: dict) -> Question:
        """Raises ValueError for a row that is none."""
        raise NotImplementedError

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        if data:
            raise ValueError(f"--data {data}: {self.name} is zero-shot and has test rows only; they go to --test-data")
        return Splits(test=read_questions(test_data, self.fields, self.question))

    def answers(self, model: Llama, rows: Sequence[Question], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A row's line: prompt, gold, choices and their log-likelihoods; contexts where each choice has its own. Questions after the same
        shots go together, so that shots are read once."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.shots, []).append(i)
        with tqdm(total=len(rows), desc=asking.desc, unit="row", disable=None, leave=False) as bar:
            for group in groups.values():
                pairs, cut = zip(*(self.pairs(rows[i], model, asking) for i in group))
                for place, values in log_likelihoods(model, pairs, asking.batch_size):
                    check_numbers(self.name, rows[group[place]], values)
                    yield group[place], line_of(rows[group[place]], values, cut[place])
                    bar.update()

    def pairs(self, row: Question, model: Llama, asking: Asking) -> tuple[list[Pair], bool]:
        """What the model is to read, and whether the context has lost its left end for it. Raises ValueError, naming the question, where the
        tokenizer is not the one that the model's vocabulary was made for, or a choice leaves no room for a context."""
        config = model.config
        empty = asking.end_ids[0] if config.bos_token_id is None else config.bos_token_id
        try:
            pairs = encode_pairs(asking.tokenizer, prompts(row), [f" {choice}" for choice in row.choices], empty)
            if (largest := max(max(p.context + p.continuation) for p in pairs)) >= config.vocab_size:
                raise ValueError(f"the tokenizer gives token id {largest}, but the model's vocab_size is {config.vocab_size}")
            kept = [fitted(pair, config.max_position_embeddings) for pair in pairs]
        except ValueError as error:
            raise ValueError(f"--task {self.name}, question {row.contexts[0][:60]!r}: {error}") from None
        return kept, kept != pairs

    def marks(self, row: Question, line: dict) -> dict[str, float]:
        values = line["log_likelihoods"]
        norm = [value / len(choice) for value, choice in zip(values, row.choices, strict=True)]
        return {"acc": float(first_largest(values) == row.gold), "acc_norm": float(first_largest(norm) == row.gold)}


def prompts(row: Question) -> list[str]:
    """Shots and context: one for all choices, or one a choice."""
    return ["".join(row.shots) + context for context in row.contexts]


def line_of(row: Question, values: list[float], cut: bool) -> dict:
    flags = [*row.flags, *[TRUNCATED] * cut]
    contexts = prompts(row)
    return {"prompt": contexts[0], "gold": row.choices[row.gold], "choices": list(row.choices), "log_likelihoods": values,
            **({"contexts": contexts} if len(contexts) > 1 else {}), **({"subject": row.subject} if row.subject else {}),
            **({"flags": flags} if flags else {})}


def check_numbers(task: str, row: Question, values: Sequence[float]) -> None:
    """Raises ValueError for a log-likelihood that is no number: the first choice would seem to be the largest, and a broken model to guess."""
    if any(map(math.isnan, values)):
        raise ValueError(f"--task {task}, question {row.contexts[0][:60]!r}: the model's log-likelihoods are no numbers ({values}): it is damaged, or "
                         f"its activations overflow in --dtype")


def first_largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


LETTERED = {"text": [str], "label": [str]}  # the field `choices` of ARC and OpenBookQA


# ---- rows -----------------------------------------------------------------------------------------------------------

def read_questions(path: Path, fields: Mapping[str, Kind], make: Callable[[dict], Question]) -> list[Question]:
    """Every row of a file, made into what `make` makes of it. Raises ValueError naming the file and the row."""
    made = []
    for place, row in placed_rows(path, fields):
        try:
            made.append(make(row))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return made


def gold(name: str, value: int, choices: Sequence[str], first: int = 0) -> int:
    """The place of the gold choice, of a field that counts from `first`."""
    allowed = range(first, first + len(choices))
    if value not in allowed:
        raise ValueError(f"{name} is {value}, not one of {', '.join(map(str, allowed))}")
    return value - first


def check_choices(choices: Sequence[str]) -> tuple[str, ...]:
    """Raises ValueError unless they are two texts at least, none of them empty: an empty one has no log-likelihood a character."""
    if len(choices) < 2:
        raise ValueError(f"{len(choices)} choices are too few")
    for i, choice in enumerate(choices, 1):
        if not choice.strip():
            raise ValueError(f"choice {i} is empty")
    return tuple(choices)


def lettered(row: dict) -> tuple[tuple[str, ...], int]:
    """Choices and gold of `choices: {text: [...], label: [...]}` and `answerKey`, as ARC and OpenBookQA have them."""
    texts, labels, key = row["choices"]["text"], row["choices"]["label"], row["answerKey"]
    if len(texts) != len(labels):
        raise ValueError(f"choices holds {len(texts)} texts and {len(labels)} labels")
    if labels.count(key) != 1:
        raise ValueError(f"answerKey is {key!r}, and the choices are labelled {', '.join(labels)}")
    return check_choices(texts), labels.index(key)
