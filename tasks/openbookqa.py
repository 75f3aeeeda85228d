"""OpenBookQA (Mihaylov et al. 2018): the beginning of a sentence or a question of science -> one of four ends or answers. The context is the bare
`question_stem`.

Rows of `question_stem`, `choices` {text, label}, `answerKey`; lm-evaluation-harness scores the test split.
"""
from tasks.choices import LETTERED, ChoiceTask, Question, lettered


class OpenBookQa(ChoiceTask):
    name = "openbookqa"
    fields = {"question_stem": str, "choices": LETTERED, "answerKey": str}

    def question(self, row: dict) -> Question:
        return Question((row["question_stem"],), *lettered(row))
