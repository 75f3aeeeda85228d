"""BoolQ (Clark et al. 2019; CC BY-SA 3.0): a passage and a question about it -> no or yes.

Rows of `question`, `passage`, `answer` (true or false); the validation split is what is reported.
"""
from tasks.choices import ChoiceTask, Question


class BoolQ(ChoiceTask):
    name = "boolq"
    fields = {"question": str, "passage": str, "answer": bool}

    def question(self, row: dict) -> Question:
        return Question((f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:",), ("no", "yes"), int(row["answer"]))
