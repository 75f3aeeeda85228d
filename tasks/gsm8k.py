"""GSM8K (Cobbe et al. 2021; MIT): a word problem -> its solution, which ends with `#### N`.

Prompt, shots, stops and scores are those of lm-evaluation-harness (shared/PROTOCOLS.md), its 5 shots as well: they are drawn for each test row,
by Python's own generator at seed 1234. `gsm8k-zero-shot` asks without shots, which is how a fine-tuned model was trained.
"""
import random
import re
from collections.abc import Sequence
from pathlib import Path

from tasks.generative import GenerativeTask
from tasks.rows import placed_rows
from tasks.task import Example, Splits, one_tenth, shuffled

FEWSHOT_SEED = 1234  # the harness' own
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class Gsm8k(GenerativeTask):
    name, metric = "gsm8k", "strict_match"
    shots = 5
    protocol = "lm-evaluation-harness 0.4.13: 5 shots drawn from --data for each row, greedy; strict: the first #### number, flexible: the last number"
    stop_texts = ("Question:", "</s>", "<|im_end|>")
    new_tokens = 256  # the harness' default
    needs_data = needs_test_data = True

    def splits(self, data: Path, test_data: Path, limit: int | None, seed: int) -> Splits:
        """A tenth of the training file for validation (plr.txt Sec. 3.1). Shots may be any rows of that file."""
        pool, test = read_problems(data), read_problems(test_data)
        if len(pool) < self.shots:
            raise ValueError(f"{data}: {len(pool)} rows are too few for {self.shots} shots a test row")
        validation, train = one_tenth(shuffled(pool, seed)[:limit])
        return Splits(train, validation, with_shots(test, pool, self.shots))

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        gold = bare(row.answer)
        return {"strict_match": float(bare(first_strict(line["text"])) == gold), "flexible_extract": float(bare(last_number(line["text"])) == gold)}


class Gsm8kZeroShot(Gsm8k):
    name, shots = "gsm8k-zero-shot", 0
    protocol = "lm-evaluation-harness 0.4.13 without shots, greedy; strict: the first #### number, flexible: the last number"


def read_problems(path: Path) -> list[Example]:
    """Raises ValueError, naming the line, for a solution without `#### N`: nothing could ever equal it."""
    rows = placed_rows(path, ("question", "answer"))
    for place, row in rows:
        if not STRICT.search(row["answer"]) or not re.search("[0-9]", bare(row["answer"])):
            raise ValueError(f"{place}: the answer does not end with '#### ' and a number")
    return [Example(f"Question: {row['question']}\nAnswer:", row["answer"]) for _, row in rows]


def with_shots(test: Sequence[Example], pool: Sequence[Example], shots: int) -> list[Example]:
    """Each test row behind `shots` rows of `pool` of its own, two line breaks between them."""
    draw = random.Random(FEWSHOT_SEED)
    return [Example("".join(f"{shot.prompt} {shot.answer}\n\n" for shot in draw.sample(pool, shots)) + row.prompt, row.answer) for row in test]


def first_strict(text: str) -> str:
    found = STRICT.search(text)
    return found[1] if found else ""


def last_number(text: str) -> str:
    """`last_number("16 eggs, so $18.") == "$18."`"""
    found = [a or b for a, b in FLEXIBLE.findall(text)]
    return found[-1] if found else ""


def bare(text: str) -> str:
    """What is compared: `bare("So it is\\n#### $1,200.") == "1200"`. An answer without a number is bare of everything, which no gold is."""
    text = re.sub(r"(?s).*#### ", "", re.sub(r"[,$]", "", text))
    return text.removesuffix(".").lower()
