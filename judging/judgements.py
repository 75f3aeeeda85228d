"""Judges every row in both orders, stores each judgement at once, and sums them up.

    DIR/judgements.jsonl   one line for each judged row: its question (sha256 of judge and prompts), both prompts, both
                           raw answers, both pairs of scores in the order shown, the verdict. Lines of other questions
                           are kept, so that they need not be asked again.
    DIR/results.json       counts, win rate, its standard error, the test
"""
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from judging.verdict import LOSS, MALFORMED, TEMPLATE_VERSION, TIE, WIN, better, judge_prompt, read_scores, verdict
from model.journal import Journal
from tasks.rows import read_rows
from tasks.significance import mcnemar_exact

FIELDS = {"question": str, "prompts": [str], "answers": [str]}


class Judge(Protocol):
    name: str

    def identity(self) -> dict:
        """What its answers depend on besides the prompt."""

    def ask(self, prompts: list[str]) -> list[str]:
        """One answer for each prompt."""


@dataclass(frozen=True)
class Compared:
    """Two runs' answers to the same requests."""
    a: str
    b: str
    task: str
    requests: list[str]
    answers_a: list[str]
    answers_b: list[str]

    def prompts(self) -> list[tuple[str, str]]:
        """The two prompts of each row: with a's answer first, and with b's first."""
        return [(judge_prompt(request, a, b), judge_prompt(request, b, a))
                for request, a, b in zip(self.requests, self.answers_a, self.answers_b, strict=True)]


def judge_all(compared: Compared, judge: Judge, out: Path, rows_at_a_time: int = 1) -> list[dict]:
    """One judgement for each row. Questions that are in judgements.jsonl are not asked again.

    New judgements are written after each call of the judge, so an interruption loses the rows of one call at most."""
    file, prompts = out / "judgements.jsonl", compared.prompts()
    known, questions = read_judgements(file), [question_of(judge, both) for both in prompts]
    # a row that occurs twice is one question
    first = {question: i for i, question in reversed(list(enumerate(questions)))}
    left = sorted(i for question, i in first.items() if question not in known)
    with tqdm(total=len(first), initial=len(first) - len(left), desc="judging", unit="row", disable=None,
              leave=False) as bar:
        for start in range(0, len(left), rows_at_a_time):
            rows = left[start:start + rows_at_a_time]
            answers = judge.ask([prompt for i in rows for prompt in prompts[i]])
            new = [judged(i, judge, questions[i], prompts[i], answers[2 * place:2 * place + 2])
                   for place, i in enumerate(rows)]
            Journal(file).append(*new)
            known |= {judgement["question"]: judgement for judgement in new}
            bar.update(len(rows))
    return [with_scores(known[question]) for question in questions]


def question_of(judge: Judge, prompts: tuple[str, str]) -> str:
    return hashlib.sha256(json.dumps([judge.identity(), prompts]).encode()).hexdigest()


def judged(row: int, judge: Judge, question: str, prompts: tuple[str, str], answers: list[str]) -> dict:
    return with_scores({"row": row, "judge": judge.name, "question": question, "prompts": list(prompts),
                        "answers": answers})


def with_scores(judgement: dict) -> dict:
    """Adds scores and verdict, read from the raw answers. Scores that a stored line already has are not trusted."""
    scores = [read_scores(answer) for answer in judgement["answers"]]
    return {**judgement, "scores": scores, "verdict": verdict(*scores)}


def read_judgements(file: Path) -> dict[str, dict]:
    """The stored judgements by question.

    Lines that an interruption cut off are removed from the file. Raises ValueError, naming the line, for any other line
    that is not a judgement."""
    journal = Journal(file)
    if not journal.keep(list(journal)):
        return {}
    rows = read_rows(file, FIELDS)
    for number, row in enumerate(rows, 1):
        if len(row["answers"]) != 2:
            raise ValueError(f"{file}, line {number}: {len(row['answers'])} answers, but a judgement has 2; "
                             "remove the line to have its row judged again")
    return {row["question"]: row for row in rows}


@dataclass(frozen=True)
class Outcome:
    """The result of run a against run b over the judged rows. Malformed rows count only as rows and as malformed."""
    rows: int
    wins: int
    ties: int
    losses: int
    malformed: int               # rows
    malformed_answers: int       # of the judge; a row has at most two
    empty_a: int                 # answers without text; they are judged like all others
    empty_b: int
    win_rate: float | None       # mean over the rows of 1 for a win, 1/2 for a tie, 0 for a loss; None without verdicts
    standard_error: float | None  # sample standard deviation (n - 1) / sqrt(n); None for fewer than two rows
    p_value: float | None        # exact two-sided sign test of wins and losses; ties do not count
    mean_score_a: float | None
    mean_score_b: float | None
    # Rows in which the answer shown first was better in both orders: the judge's bias. Such a row is a tie.
    preferred_first: int
    preferred_second: int


def outcome_of(judgements: list[dict], compared: Compared) -> Outcome:
    counts = Counter(judgement["verdict"] for judgement in judgements)
    whole = [judgement for judgement in judgements if judgement["verdict"] != MALFORMED]
    values = np.array([{WIN: 1.0, TIE: 0.5, LOSS: 0.0}[judgement["verdict"]] for judgement in whole])
    orders = [tuple(better(*scores) for scores in judgement["scores"]) for judgement in whole]
    scores_a = [score for judgement in whole for score in (judgement["scores"][0][0], judgement["scores"][1][1])]
    scores_b = [score for judgement in whole for score in (judgement["scores"][0][1], judgement["scores"][1][0])]
    n = len(values)
    return Outcome(len(judgements), counts[WIN], counts[TIE], counts[LOSS], counts[MALFORMED],
                   sum(scores is None for judgement in judgements for scores in judgement["scores"]),
                   *(sum(not answer.strip() for answer in answers)
                     for answers in (compared.answers_a, compared.answers_b)),
                   float(values.mean()) if n else None, float(values.std(ddof=1) / n ** 0.5) if n > 1 else None,
                   mcnemar_exact(counts[WIN], counts[LOSS]) if n else None,
                   float(np.mean(scores_a)) if n else None, float(np.mean(scores_b)) if n else None,
                   orders.count((1, 1)), orders.count((-1, -1)))


def results_of(outcome: Outcome, compared: Compared, judge: Judge) -> dict:
    questions = [question_of(judge, prompts) for prompts in compared.prompts()]
    return {"task": compared.task, "a": compared.a, "b": compared.b, "judge": judge.identity(),
            "template_version": TEMPLATE_VERSION,
            "protocol": "scores 1 to 10 in both orders, win/tie/loss as in Shen et al., Sec. 4.2",
            "test": "sign test, exact", **asdict(outcome),
            "questions": hashlib.sha256(json.dumps(questions).encode()).hexdigest()}
