"""GSM8K (Cobbe et al. 2021; MIT): a word problem -> its solution, which ends with `#### N`.

Prompt, shots, stop texts and scores are those of lm-evaluation-harness (docs/tasks.md). Its 5 shots are drawn for each
test row by Python's own generator with seed 1234; the same ones are drawn here. `gsm8k-zero-shot` asks without shots,
as in training.
"""
import random
import re
from collections.abc import Sequence
from pathlib import Path

from tasks.generative import OWN_SHOT, GenerativeTask
from tasks.rows import placed_rows
from tasks.task import Asking, Example, Splits, one_tenth, shuffled

FEWSHOT_SEED = 1234  # as in lm-evaluation-harness
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class Gsm8k(GenerativeTask):
    name, metric = "gsm8k", "strict_match"
    title, licence = "word problems, scored with 5 shots", "MIT"
    rows = "question, answer"
    shots = 5
    protocol = ("lm-evaluation-harness 0.4.13: 5 shots drawn from --data for each row, greedy; "
                "strict: the first #### number, flexible: the last number")
    stop_texts = ("Question:", "</s>", "<|im_end|>")
    new_tokens = 256  # lm-evaluation-harness' default
    needs_data = needs_test_data = True

    def __init__(self):
        self.questions: dict[str, str] = {}  # prompt with shots -> without, of the rows that `splits` has read

    def splits(self, data: Path, test_data: Path, limit: int | None, seed: int) -> Splits:
        """A tenth of the training file is for validation (Kanda & Hatano, Sec. 3.1). Any row of it may be a shot."""
        pool, test = read_problems(data), read_problems(test_data)
        if len(pool) < self.shots:
            raise ValueError(f"{data}: found {len(pool)} rows; at least {self.shots} are needed as shots")
        validation, train = one_tenth(shuffled(pool, seed)[:limit])
        asked = with_shots(test, pool, self.shots)
        self.questions = {long.prompt: row.prompt for long, row in zip(asked, test, strict=True)}
        return Splits(train, validation, asked)

    def question_of(self, row: Example) -> str:
        return self.questions.get(row.prompt, row.prompt)

    def row_flags(self, row: Example, asking: Asking) -> list[str]:
        """A row that is also in --data may be drawn as its own shot: its answer then stands in its prompt."""
        question = self.question_of(row)
        shots = row.prompt.removesuffix(question)
        held = " ".join(question.lower().split()) in " ".join(shots.lower().split())
        return super().row_flags(row, asking) + [OWN_SHOT] * held

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        gold = bare(row.answer.strip())
        return {"strict_match": float(bare(first_strict(line["text"])) == gold),
                "flexible_extract": float(bare(last_number(line["text"])) == gold)}


class Gsm8kZeroShot(Gsm8k):
    name, shots = "gsm8k-zero-shot", 0
    title = "word problems, scored without shots"
    protocol = ("lm-evaluation-harness 0.4.13 without shots, greedy; "
                "strict: the first #### number, flexible: the last number")


def read_problems(path: Path) -> list[Example]:
    """Raises ValueError, naming the line, for a solution that would not score if it were the answer: without `#### N`
    at its end, or with another `#### N` before it."""
    rows = placed_rows(path, ("question", "answer"))
    for place, row in rows:
        number = bare(first_strict(row["answer"]))
        if number != bare(row["answer"].strip()) or not re.search("[0-9]", number):
            raise ValueError(f"{place}: the answer does not end with '#### ' and a number, or holds another '#### ' "
                             f"before it: no answer could equal it")
    return [Example(f"Question: {row['question']}\nAnswer:", row["answer"]) for _, row in rows]


def with_shots(test: Sequence[Example], pool: Sequence[Example], shots: int) -> list[Example]:
    """Each test row after `shots` rows of `pool`, drawn anew for each, with two line breaks between them."""
    draw = random.Random(FEWSHOT_SEED)
    return [Example("".join(f"{shot.prompt} {shot.answer}\n\n" for shot in draw.sample(pool, shots)) + row.prompt,
                    row.answer)
            for row in test]


def first_strict(text: str) -> str:
    found = STRICT.search(text)
    return found[1] if found else ""


def last_number(text: str) -> str:
    """`last_number("16 eggs, so $18.") == "$18."`"""
    found = [a or b for a, b in FLEXIBLE.findall(text)]
    return found[-1] if found else ""


def bare(text: str) -> str:
    """The text that is compared: `bare("So it is\\n#### $1,200.") == "1200"`.

    An answer without a number becomes the empty text, which no gold answer is."""
    text = re.sub(r"(?s).*#### ", "", re.sub(r"[,$]", "", text))
    return text.removesuffix(".").lower()
