"""AI2 Reasoning Challenge (Clark et al. 2018; CC BY-SA 4.0): a school science question -> one of three to five answers.

There are two sets: the questions that simple methods answered (easy), and the others (challenge).
Rows hold `question`, `choices` {text, label} and `answerKey`. lm-evaluation-harness scores the test split.
"""
from tasks.choices import LETTERED, ChoiceTask, Question, lettered


class ArcEasy(ChoiceTask):
    name = "arc_easy"
    title, licence = "science questions, the easy set", "CC BY-SA 4.0"
    rows = "question, choices {text, label}, answerKey"
    fields = {"question": str, "choices": LETTERED, "answerKey": str}

    def question(self, row: dict) -> Question:
        return Question((f"Question: {row['question']}\nAnswer:",), *lettered(row))


class ArcChallenge(ArcEasy):
    name = "arc_challenge"
    title = "science questions, the challenge set"
