"""AI2 Reasoning Challenge (Clark et al. 2018; CC BY-SA 4.0): a school question of science -> one of three to five answers. Two sets: those
that simple methods answered (easy), and the others (challenge).

Rows of `question`, `choices` {text, label}, `answerKey`; lm-evaluation-harness scores the test split.
"""
from tasks.choices import LETTERED, ChoiceTask, Question, lettered


class ArcEasy(ChoiceTask):
    name = "arc_easy"
    fields = {"question": str, "choices": LETTERED, "answerKey": str}

    def question(self, row: dict) -> Question:
        return Question((f"Question: {row['question']}\nAnswer:",), *lettered(row))


class ArcChallenge(ArcEasy):
    name = "arc_challenge"
