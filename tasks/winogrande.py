"""WinoGrande (Sakaguchi et al. 2021; CC BY): a sentence with a gap -> which of two names fills it.

Each name is put into the gap, so every choice has its own context. The continuation is the rest of the sentence, which
is the same for both. Rows hold `sentence` (with `_`), `option1`, `option2` and `answer` ("1" or "2").
Published scores are of the validation split.
"""
from tasks.choices import ChoiceTask, Question, check_choices, gold


class WinoGrande(ChoiceTask):
    name = "winogrande"
    title, licence = "the name that fills a gap", "CC BY"
    rows = "sentence, option1, option2, answer"
    fields = {"sentence": str, "option1": str, "option2": str, "answer": int}

    def question(self, row: dict) -> Question:
        options = check_choices((row["option1"], row["option2"]))
        before, gap, after = row["sentence"].partition("_")
        if not gap or not after.strip():
            raise ValueError("sentence has no _ with text after it")
        contexts = tuple(before + option for option in options)
        return Question(contexts, (after.strip(),) * 2, gold("answer", row["answer"], options, first=1))
