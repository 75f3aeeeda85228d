"""Tasks whose answer is free text, over several lines: ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), by the package rouge-score."""
import importlib
from functools import cache

from tasks.generative import GenerativeTask
from tasks.task import Example, Splits

ROUGES = ("rouge1", "rouge2", "rougeL")


class FreeTextTask(GenerativeTask):
    metric = "rougeL"
    protocol = "greedy, to the end token; F-measure of ROUGE-1, -2 and -L by rouge-score, without stemming"
    stop_texts = ()
    new_tokens = 512  # ours: the sets have single answers of thousands of tokens, for which all others would have to wait

    def checked(self, splits: Splits) -> Splits:
        """Raises ValueError where there are test rows, and no package to score them with."""
        if splits.test:
            scorer()
        return splits

    def marks(self, row: Example, line: dict) -> dict[str, float]:
        return rouge(row.answer, line["text"])


def rouge(gold: str, written: str) -> dict[str, float]:
    """F1 = 2 * overlap / (grams written + grams of the gold) of single words, of pairs, and of the longest common subsequence, from 0 to
    1. Words are runs of the letters a to z and digits in lower case, as the package has them: text without any scores 0."""
    return {name: float(score.fmeasure) for name, score in scorer().score(gold, written).items()}


@cache
def scorer():
    try:
        return importlib.import_module("rouge_score.rouge_scorer").RougeScorer(ROUGES, use_stemmer=False)
    except ImportError:
        raise ValueError("ROUGE is computed by rouge-score, which is not installed: pip install rouge-score") from None
