"""HellaSwag (Zellers et al. 2019; MIT): what somebody does -> how it goes on, one of four endings, three of them machine-written.

Rows of `activity_label`, `endings`, `label` (0 to 3) and the beginning, as `ctx_a` and `ctx_b` or, in copies that have them joined, as `ctx`: there
the capital letter of ctx_b cannot be made again, and ctx stands as it is. The validation split is what is reported.
"""
import re

from tasks.choices import ChoiceTask, Question, check_choices, gold


def cleaned(text: str) -> str:
    """Of WikiHow's marks: `Baking. [title] Mix  it. [step] Wait.` -> `Baking.. Mix it. Wait.`"""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


class HellaSwag(ChoiceTask):
    name, metric = "hellaswag", "acc_norm"
    fields = {"activity_label": str, "endings": [str], "label": int}

    def question(self, row: dict) -> Question:
        choices = check_choices([cleaned(ending) for ending in row["endings"]])
        return Question((cleaned(f"{row['activity_label']}: {beginning(row)}"),), choices, gold("label", row["label"], choices))


def beginning(row: dict) -> str:
    a, b, whole = (row.get(name) for name in ("ctx_a", "ctx_b", "ctx"))
    if isinstance(a, str) and isinstance(b, str):
        return f"{a} {b.capitalize()}"
    if not isinstance(whole, str):
        raise ValueError("neither ctx_a and ctx_b nor ctx is there as text")
    return whole
