"""BoolQ (Clark et al. 2019; CC BY-SA 3.0): a passage and a question about it -> no or yes.

Rows hold `question`, `passage` and `answer` (true or false). Published scores are of the validation split.
"""
from tasks.choices import ChoiceTask, Question


class BoolQ(ChoiceTask):
    name = "boolq"
    title, licence = "yes or no, from a passage", "CC BY-SA 3.0"
    rows = "question, passage, answer"
    fields = {"question": str, "passage": str, "answer": bool}

    def question(self, row: dict) -> Question:
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        return Question((context,), ("no", "yes"), int(row["answer"]))
