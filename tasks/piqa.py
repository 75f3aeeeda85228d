"""PIQA (Bisk et al. 2020; Academic Free License 3.0): a goal of everyday life -> which of two ways reaches it.

Rows hold `goal`, `sol1`, `sol2` and `label` (0 or 1). Published scores are of the validation split.
"""
from tasks.choices import ChoiceTask, Question, check_choices, gold


class Piqa(ChoiceTask):
    name = "piqa"
    title, licence = "ways to an everyday goal", "AFL-3.0"
    rows = "goal, sol1, sol2, label"
    fields = {"goal": str, "sol1": str, "sol2": str, "label": int}

    def question(self, row: dict) -> Question:
        choices = check_choices((row["sol1"], row["sol2"]))
        return Question((f"Question: {row['goal']}\nAnswer:",), choices, gold("label", row["label"], choices))
