"""HellaSwag (Zellers et al. 2019; MIT): what somebody does -> one of four endings, of which three are machine-written.

Rows hold `activity_label`, `endings`, `label` (0 to 3) and the beginning: `ctx_a` and `ctx_b`, or `ctx` in copies that
have them joined. There the capital letter of ctx_b cannot be recovered, so ctx is used unchanged.
Published scores are of the validation split.
"""
import re

from tasks.choices import ChoiceTask, Question, check_choices, gold
from tasks.rows import check_text


def cleaned(text: str) -> str:
    """Removes WikiHow's markup: `Baking. [title] Mix  it. [step] Wait.` -> `Baking.. Mix it. Wait.`"""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


class HellaSwag(ChoiceTask):
    name, metric = "hellaswag", "acc_norm"
    title, licence = "the ending of an everyday scene", "MIT"
    rows = "activity_label, ctx_a and ctx_b, or ctx, endings, label"
    fields = {"activity_label": str, "endings": [str], "label": int}

    def question(self, row: dict) -> Question:
        choices = check_choices([cleaned(ending) for ending in row["endings"]])
        context = cleaned(f"{row['activity_label']}: {check_text(beginning(row))}")
        return Question((context,), choices, gold("label", row["label"], choices))


def beginning(row: dict) -> str:
    a, b, whole = (row.get(name) for name in ("ctx_a", "ctx_b", "ctx"))
    if isinstance(a, str) and isinstance(b, str):
        return f"{a} {b.capitalize()}"
    if not isinstance(whole, str):
        raise ValueError("no text in ctx, nor in both ctx_a and ctx_b; one of the two is needed")
    return whole
