"""Paired tests: do two models' scores on the SAME rows differ by more than chance explains?

| code name | meaning |
|---|---|
| `a`, `b` | the scores of two models, one for each test row; 0 or 1 where an answer is wrong or right |
| `only_a`, `only_b` | the number of rows that only a, or only b, has right. McNemar's test uses nothing else |
| `difference` | mean(a) - mean(b) |
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, CONFIDENCE = 10_000, 0.95
AT_A_TIME = 1 << 22  # drawn rows held in memory


@dataclass(frozen=True)
class Comparison:
    """The scores of a and b compared. The interval [low, high] holds the difference with a confidence of 95 %."""
    rows: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    test: str                     # the test that gave `p_value`
    p_value: float
    only_a: int | None = None     # None where the test is not McNemar's
    only_b: int | None = None


def compare_scores(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """McNemar's exact test where every score is 0 or 1, else the paired bootstrap.

    The interval is the bootstrap's in both cases.
    Raises ValueError where there are no rows, or a and b have different numbers of rows."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} scores; a paired test needs as many of each, and at least one")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low, high, p_value = paired_bootstrap(a - b, seed)
    facts = dict(rows=len(a), mean_a=a.mean(), mean_b=b.mean(), difference=a.mean() - b.mean(), low=low, high=high)
    facts = {name: value if name == "rows" else float(value) for name, value in facts.items()}
    if not np.isin((a, b), (0, 1)).all():
        return Comparison(**facts, test="paired bootstrap", p_value=p_value)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    p_value = mcnemar_exact(only_a, only_b)
    return Comparison(**facts, test="McNemar, exact", p_value=p_value, only_a=only_a, only_b=only_b)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """p = min(1, 2 * P(X <= min(only_a, only_b))),  X ~ Binomial(only_a + only_b, 1/2).

    The test is two-sided. Rows that both have right, or both wrong, do not show which is better.
    Source: McNemar 1947; the exact form is in Agresti, Categorical Data Analysis."""
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** n)


def paired_bootstrap(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """(low, high, p): the percentile interval of the mean difference, and the two-sided p-value of "the mean is 0".

        p = (1 + #{|mean* - mean| >= |mean|}) / (1 + resamples)

    mean* is the mean of a resample of the rows' differences. mean* - mean is distributed as the mean would be if there
    were no difference (Efron and Tibshirani 1993, Sec. 16.4)."""
    rng, n, mean = np.random.default_rng(seed), len(differences), differences.mean()
    sizes = np.diff([*range(0, resamples, max(1, AT_A_TIME // n)), resamples])
    means = np.concatenate([differences[rng.integers(n, size=(size, n))].mean(1) for size in sizes])
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    slack = 1e-12 * np.abs(differences).max()  # sums that differ by rounding only count as equal
    return float(low), float(high), float(1 + (np.abs(means - mean) >= np.abs(mean) - slack).sum()) / (1 + resamples)
