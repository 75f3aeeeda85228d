"""OpenBookQA (Mihaylov et al. 2018): a science question or the beginning of a sentence -> one of four answers or ends.

The context is the bare `question_stem`. Rows hold `question_stem`, `choices` {text, label} and `answerKey`.
lm-evaluation-harness scores the test split.
"""
from tasks.choices import LETTERED, ChoiceTask, Question, lettered


class OpenBookQa(ChoiceTask):
    name = "openbookqa"
    title, licence = "science questions", "not stated"
    rows = "question_stem, choices {text, label}, answerKey"
    fields = {"question_stem": str, "choices": LETTERED, "answerKey": str}

    def question(self, row: dict) -> Question:
        return Question((row["question_stem"],), *lettered(row))
