"""Multiple-choice benchmarks: the model's answer is the choice whose text is most probable after the context.

| code name | meaning |
|---|---|
| `contexts` | the text before the choices: one for all of them, or one for each choice (WinoGrande) |
| `shots` | an introduction and worked examples, which stand before every context |
| continuation | one space and the unchanged choice |
| acc | 1 if the gold choice has the largest log-likelihood. Of equal ones, the first counts |
| acc_norm | the same with log-likelihood / number of the choice's Unicode characters |

Source: lm-evaluation-harness 0.4.13. Log-likelihoods that it computed are in tests/fixtures/lm_eval. `metric` is the
one of the two that the papers report. Shen et al., Table 4, does not name it. Its 76.3 on HellaSwag can only be
acc_norm (LLaMA-7B: acc 56, as in the table's first row); the other columns are read as acc.
"""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from model.finite import NotFinite, why_not_finite
from model.likelihood import Pair, encode_pairs, fitted, log_likelihoods
from model.llama import Llama
from tasks.generative import OWN_SHOT, TRUNCATED
from tasks.rows import Kind, placed_rows
from tasks.task import Asking, Splits, Task

SAME_CHOICE = "a gold choice that an earlier one equals, which counts instead"


@dataclass(frozen=True)
class Question:
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    shots: tuple[str, ...] = ()
    subject: str = ""
    flags: tuple[str, ...] = ()  # what is unusual about the row


class ChoiceTask(Task):
    """Subclasses define the `fields` of a row and the `question` that it asks."""
    metric = "acc"
    protocol = "as lm-evaluation-harness 0.4: log-likelihood of one space and the choice after the context, zero-shot"
    needs_test_data, trains = True, False
    fields: Mapping[str, Kind]

    def question(self, row: dict) -> Question:
        """Raises ValueError where the row is not a valid question."""
        raise NotImplementedError

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        if data:
            raise ValueError(f"--data {data}: --task {self.name} is zero-shot and takes no --data; "
                             "give its test rows as --test-data")
        return Splits(test=read_questions(test_data, self.fields, self.question))

    def answers(self, model: Llama, rows: Sequence[Question], asking: Asking) -> Iterator[tuple[int, dict]]:
        """A line holds prompt, gold, choices and their log-likelihoods, and contexts where each choice has its own.

        Questions with the same shots are asked together, so that the shots are read once."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.shots, []).append(i)
        with tqdm(total=len(rows), desc=asking.desc, unit="row", disable=None, leave=False) as bar:
            for group in groups.values():
                pairs, cut = zip(*(self.pairs(rows[i], model, asking) for i in group), strict=True)
                for place, values in log_likelihoods(model, pairs, asking.batch_size):
                    if not all(map(math.isfinite, values)):
                        raise not_numbers(self.name, model, rows[group[place]], values, pairs[place])
                    yield group[place], line_of(rows[group[place]], values, cut[place])
                    bar.update()

    def pairs(self, row: Question, model: Llama, asking: Asking) -> tuple[list[Pair], bool]:
        """The token ids that the model reads, and whether the context was cut on the left to fit.

        Raises ValueError, naming the question, where the tokenizer does not fit the model's vocabulary, or a choice
        leaves no room for a context."""
        config = model.config
        empty = asking.end_ids[0] if config.bos_token_id is None else config.bos_token_id
        try:
            pairs = encode_pairs(asking.tokenizer, prompts(row), [f" {choice}" for choice in row.choices], empty)
            if (largest := max(max(p.context + p.continuation) for p in pairs)) >= config.vocab_size:
                raise ValueError(f"the tokenizer gives token id {largest}, but the model's vocab_size is "
                                 f"{config.vocab_size}")
            kept = [fitted(pair, config.max_position_embeddings) for pair in pairs]
        except ValueError as error:
            raise ValueError(f"--task {self.name}, question {row.contexts[0][:60]!r}: {error}") from None
        return kept, kept != pairs

    def row_flags(self, row: Question, asking: Asking) -> list[str]:
        return unusual(row)

    def texts(self, row: Question) -> tuple[str, ...]:
        return (*row.shots, *row.contexts, *row.choices)

    def marks(self, row: Question, line: dict) -> dict[str, float]:
        values = line["log_likelihoods"]
        norm = [value / len(choice) for value, choice in zip(values, row.choices, strict=True)]
        return {"acc": float(first_largest(values) == row.gold),
                "acc_norm": float(first_largest(norm) == row.gold)}


def prompts(row: Question) -> list[str]:
    """Shots and context: one text for all choices, or one for each choice."""
    return ["".join(row.shots) + context for context in row.contexts]


def line_of(row: Question, values: list[float], cut: bool) -> dict:
    flags = [*row.flags, *unusual(row), *[TRUNCATED] * cut]
    contexts = prompts(row)
    return {"prompt": contexts[0], "gold": row.choices[row.gold], "choices": list(row.choices),
            "log_likelihoods": values, **({"contexts": contexts} if len(contexts) > 1 else {}),
            **({"subject": row.subject} if row.subject else {}), **({"flags": flags} if flags else {})}


def unusual(row: Question) -> list[str]:
    """Why a question cannot score, or scores too well, whoever answers it."""
    asked = list(zip(row.contexts * (len(row.choices) if len(row.contexts) == 1 else 1), row.choices, strict=True))
    return [OWN_SHOT] * holds_itself(row) + [SAME_CHOICE] * (asked[row.gold] in asked[:row.gold])


def holds_itself(row: Question) -> bool:
    """Whether a shot begins with the words of the question itself: its answer then stands in the prompt.

    Case, white space and the order of the words do not count, so that the choices may stand in another order."""
    contexts, shots = ([text.lower().split() for text in texts] for texts in (row.contexts, row.shots))
    return any(sorted(shot[:len(context)]) == sorted(context) for shot in shots for context in contexts)


def not_numbers(task: str, model: Llama, row: Question, values: Sequence[float], pairs: Sequence[Pair]) -> NotFinite:
    """The error for NaN and infinity: the first choice would count as the largest, as if the model were guessing."""
    first = next(i for i, value in enumerate(values) if not math.isfinite(value))
    why = why_not_finite(model, pairs[first].context + pairs[first].continuation[:-1])
    return NotFinite(f"--task {task}, question {row.contexts[0][:60]!r}: log-likelihoods {values} are not numbers; "
                     f"{why}")


def first_largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


LETTERED = {"text": [str], "label": [str]}  # the field `choices` of ARC and OpenBookQA


# ---- rows -----------------------------------------------------------------------------------------------------------

def read_questions(path: Path, fields: Mapping[str, Kind], make: Callable[[dict], Question]) -> list[Question]:
    """`make(row)` of every row of a file. Raises ValueError naming the file and the row."""
    made = []
    for place, row in placed_rows(path, fields):
        try:
            made.append(make(row))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return made


def gold(name: str, value: int, choices: Sequence[str], first: int = 0) -> int:
    """The place of the gold choice, counted from 0. The field `name` counts from `first`."""
    allowed = range(first, first + len(choices))
    if value not in allowed:
        raise ValueError(f"{name} is {value}, not one of {', '.join(map(str, allowed))}")
    return value - first


def check_choices(choices: Sequence[str]) -> tuple[str, ...]:
    """Raises ValueError for fewer than two choices, or an empty one: it has no log-likelihood per character."""
    if len(choices) < 2:
        raise ValueError(f"number of choices is {len(choices)}; at least 2 are needed")
    for i, choice in enumerate(choices, 1):
        if not choice.strip():
            raise ValueError(f"choice {i} is empty")
    return tuple(choices)


def lettered(row: dict) -> tuple[tuple[str, ...], int]:
    """Choices and gold from `choices: {text: [...], label: [...]}` and `answerKey` (ARC and OpenBookQA)."""
    texts, labels, key = row["choices"]["text"], row["choices"]["label"], row["answerKey"]
    if len(texts) != len(labels):
        raise ValueError(f"choices holds {len(texts)} texts and {len(labels)} labels")
    if labels.count(key) != 1:
        raise ValueError(f"answerKey is {key!r}, but must equal exactly one of the labels {', '.join(labels)}")
    return check_choices(texts), labels.index(key)
