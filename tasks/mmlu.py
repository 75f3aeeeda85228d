"""MMLU (Hendrycks et al. 2021; MIT): exam questions of 57 subjects, with four choices each.

The model reads five worked examples and names the letter of the right choice.

    python eval.py --model DIR --task mmlu --data dev.jsonl --test-data test.jsonl
    python eval.py --model DIR --task mmlu --data dev.jsonl --test-data test.jsonl --protocol hendrycks

Rows hold `question`, `choices` (4), `answer` (0 to 3) and `subject`. The shots are the subject's first five rows of
--data, the published dev split. Averages are over questions (micro): of all subjects, of each subject, and of each of
the four categories in the tables of Shen et al.
"""
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.tokenizer import Tokenizer
from tasks.choices import ChoiceTask, Question, gold, prompts, read_questions
from tasks.task import Splits

SHOTS, LETTERS = 5, ("A", "B", "C", "D")
FEW_SHOTS, EMPTY_CHOICE = f"fewer than {SHOTS} shots", "an empty choice"
CATEGORIES = {  # as Hendrycks et al. group them
    "humanities": ("formal_logic high_school_european_history high_school_us_history high_school_world_history "
                   "international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy "
                   "prehistory professional_law world_religions"),
    "STEM": ("abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
             "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
             "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
             "high_school_mathematics high_school_physics high_school_statistics machine_learning"),
    "social": ("econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
               "high_school_microeconomics high_school_psychology human_sexuality professional_psychology "
               "public_relations security_studies sociology us_foreign_policy"),
    "other": ("business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
              "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"),
}
CATEGORY_OF = {subject: category for category, subjects in CATEGORIES.items() for subject in subjects.split()}


class Mmlu(ChoiceTask):
    name = "mmlu"
    title, licence = "exam questions of 57 subjects", "MIT"
    rows = "question, choices, answer, subject"
    protocol = (f"as lm-evaluation-harness 0.4: {SHOTS}-shot, log-likelihood of one space and the letter; "
                "averages over questions")
    needs_data = True
    fields = {"question": str, "choices": [str], "answer": int, "subject": str}

    def splits(self, data: Path | None, test_data: Path | None, limit: int | None, seed: int) -> Splits:
        """Raises ValueError, naming the file and the row, where a subject is not one of MMLU's or has no shots."""
        shots: dict[str, list[str]] = {}
        for question in read_questions(data, self.fields, self.question):
            worked = f"{question.contexts[0]} {question.choices[question.gold]}\n\n"
            shots.setdefault(question.subject, []).append(worked)

        def with_shots(row: dict) -> Question:
            question = self.question(row)
            if question.subject not in shots:
                raise ValueError(f"{data} has no row of the subject {question.subject!r} to use as a shot")
            before = (self.introduction(question.subject), *shots[question.subject][:SHOTS])
            flags = question.flags + (FEW_SHOTS,) * (len(before) <= SHOTS)
            return replace(question, shots=before, flags=flags)
        return Splits(test=read_questions(test_data, self.fields, with_shots))

    def question(self, row: dict) -> Question:
        """The question without shots. The letters are scored. An empty choice text is kept, and flagged."""
        texts, subject = row["choices"], row["subject"]
        if subject not in CATEGORY_OF:
            raise ValueError(f"subject {subject!r} is not one of MMLU's {len(CATEGORY_OF)} subjects")
        if len(texts) != len(LETTERS):
            raise ValueError(f"choices holds {len(texts)} texts, not {len(LETTERS)}")
        listed = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, texts, strict=True))
        flags = () if all(text.strip() for text in texts) else (EMPTY_CHOICE,)
        return Question((f"{row['question'].strip()}\n{listed}Answer:",), LETTERS,
                        gold("answer", row["answer"], LETTERS), subject=subject, flags=flags)

    def introduction(self, subject: str) -> str:
        return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"

    def scores(self, rows: Sequence[Question], lines: Sequence[dict]) -> tuple[dict[str, float], dict[str, float]]:
        """Adds the scores of the categories. All standard errors are pooled within subjects."""
        scores, _ = super().scores(rows, lines)
        marks = [self.marks(row, line) for row, line in zip(rows, lines, strict=True)]
        subjects = [row.subject for row in rows]
        errors = {name: pooled_error([m[name] for m in marks], subjects) for name in (marks[0] if marks else {})}
        for category in CATEGORIES:
            if some := [i for i, subject in enumerate(subjects) if CATEGORY_OF[subject] == category]:
                found, _ = super().scores([rows[i] for i in some], [lines[i] for i in some])
                scores[category] = found["acc"]
                errors[category] = pooled_error([marks[i]["acc"] for i in some], [subjects[i] for i in some])
        return scores, {name: error for name, error in errors.items() if error is not None}

    def parts(self, rows: Sequence[Question], lines: Sequence[dict]) -> dict[str, float]:
        by_subject: dict[str, list[float]] = {}
        for row, line in zip(rows, lines, strict=True):
            by_subject.setdefault(row.subject, []).append(self.marks(row, line)["acc"])
        return {subject: statistics.fmean(by_subject[subject]) for subject in sorted(by_subject)}


class HendrycksMmlu(Mmlu):
    """The form of the script of Hendrycks et al.

    Two spaces stand after `about`. The first shots are dropped until the prompt fits, so that no prompt loses its left
    end. The answer is the letter of the largest next-token logit, which is that of the largest log-likelihood."""
    name = "mmlu-hendrycks"
    protocol = (f"as the script of Hendrycks et al.: up to {SHOTS} shots, as many as fit into 2048 tokens, "
                "largest logit of the letters; averages over questions")

    def introduction(self, subject: str) -> str:
        return super().introduction(f" {subject}")

    def test_rows(self, test: Sequence[Question], tokenizer: Tokenizer, longest: int) -> list[Question]:
        """`longest` is --max-length, by default 2048 tokens or the model's positions, whichever is less."""
        return [with_room(question, tokenizer, longest) for question in test]


Mmlu.protocols = {"lm-eval": Mmlu, "hendrycks": HendrycksMmlu}


def pooled_error(values: Sequence[float], groups: Sequence[str]) -> float | None:
    """sqrt(pooled variance / n),  pooled variance = sum over groups of (n_g - 1) s_g^2 / (n - number of groups).

    How far the groups' means lie apart is no error: the groups are fixed, not drawn. None if no group has two values.
    Source: lm-evaluation-harness 0.4.13, pooled_sample_stderr."""
    of_group: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        of_group.setdefault(group, []).append(value)
    n, squares = len(values), sum((len(g) - 1) * statistics.variance(g) for g in of_group.values() if len(g) > 1)
    return (squares / (n - len(of_group)) / n) ** 0.5 if n > len(of_group) else None


def with_room(question: Question, tokenizer: Tokenizer, longest: int) -> Question:
    """Drops the first shots until the prompt has at most `longest` tokens or no shot is left."""
    while len(question.shots) > 1 and len(tokenizer.encode(prompts(question)[0])) > longest:
        flags = question.flags if FEW_SHOTS in question.flags else (*question.flags, FEW_SHOTS)
        question = replace(question, shots=(question.shots[0], *question.shots[2:]), flags=flags)
    return question
