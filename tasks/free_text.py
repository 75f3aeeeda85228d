"""Tasks whose answer is free text of any number of lines, scored by ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004).

The package rouge-score computes them.
"""
import importlib
import re
from functools import cache

from tasks.generative import GenerativeTask
from tasks.task import Asking, Example, Splits

ROUGES = ("rouge1", "rouge2", "rougeL")
NO_WORD = "a gold answer without a letter a to z or a digit, whose ROUGE is always 0"


class FreeTextTask(GenerativeTask):
    metric = "rougeL"
    protocol = "greedy, to the end token; F-measure of ROUGE-1, -2 and -L by rouge-score, without stemming"
    stop_texts = ()
    new_tokens = 512  # our limit: the data sets have a few answers of thousands of tokens, which would delay all others

    def checked(self, splits: Splits) -> Splits:
        """Raises ValueError where there are test rows but rouge-score is not installed."""
        if splits.test:
            scorer()
        return splits

    def row_flags(self, row: Example, asking: Asking) -> list[str]:
        """Chinese or Russian text, for example, has no words for the package."""
        return super().row_flags(row, asking) + [NO_WORD] * (not re.search("[a-z0-9]", row.answer.lower()))

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        return rouge(row.answer, line["text"])


def rouge(gold: str, written: str) -> dict[str, float]:
    """F1 = 2 * overlap / (grams written + grams of the gold), from 0 to 1.

    The grams are single words (rouge1), pairs of words (rouge2), or the longest common subsequence (rougeL). A word is
    a run of letters a to z and digits, in lower case, as in the package. Text without a word scores 0."""
    return {name: float(score.fmeasure) for name, score in scorer().score(gold, written).items()}


@cache
def scorer():
    try:
        return importlib.import_module("rouge_score.rouge_scorer").RougeScorer(ROUGES, use_stemmer=False)
    except ImportError:
        raise ValueError("ROUGE needs rouge-score, which is not installed: pip install rouge-score") from None
