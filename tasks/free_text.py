"""Tasks whose answer is free text of any number of lines, scored by ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004).

The package rouge-score computes them.
"""
import importlib
from functools import cache

from tasks.generative import GenerativeTask
from tasks.task import Example, Splits

ROUGES = ("rouge1", "rouge2", "rougeL")


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
