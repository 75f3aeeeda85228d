"""WinoGrande (Sakaguchi et al. 2021; CC BY): a sentence with a gap -> which of two names fills it.

The gap is filled by each of the two, and what is scored is the rest of the sentence, the same after both: one context a choice. Rows of
`sentence` (with `_`), `option1`, `option2`, `answer` ("1" or "2"); the validation split is what is reported.
"""
from tasks.choices import ChoiceTask, Question, check_choices, gold


class WinoGrande(ChoiceTask):
    name = "winogrande"
    fields = {"sentence": str, "option1": str, "option2": str, "answer": int}

    def question(self, row: dict) -> Question:
        options = check_choices((row["option1"], row["option2"]))
        before, gap, after = row["sentence"].partition("_")
        if not gap or not after.strip():
            raise ValueError("sentence has no _ with text after it")
        return Question(tuple(before + option for option in options), (after.strip(),) * 2, gold("answer", row["answer"], options, first=1))
