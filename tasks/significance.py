"""Paired tests: are two models' scores on the SAME rows further apart than chance puts them?

| code name | meaning |
|---|---|
| `a`, `b` | one score a test row, of two models, row by row; 0 or 1 where an answer is wrong or right |
| `only_a`, `only_b` | rows that only the one, only the other has right: all that McNemar's test looks at |
| `difference` | mean(a) - mean(b) |
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, CONFIDENCE = 10_000, 0.95
AT_A_TIME = 1 << 22  # drawn rows in memory


@dataclass(frozen=True)
class Comparison:
    """Of b's scores with a's. The interval holds the difference with a confidence of 95 %."""
    rows: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    test: str                     # which test `p_value` is of
    p_value: float
    only_a: int | None = None     # of McNemar's test alone
    only_b: int | None = None


def compare_scores(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """McNemar's exact test where every score is 0 or 1, else the paired bootstrap's; the interval is the bootstrap's in both.
    Raises ValueError for scores of no rows, or of different numbers of rows."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a paired test needs two scores of each row; here are {len(a)} and {len(b)}")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low, high, p_value = paired_bootstrap(a - b, seed)
    facts = dict(rows=len(a), mean_a=a.mean(), mean_b=b.mean(), difference=a.mean() - b.mean(), low=low, high=high)
    facts = {name: value if name == "rows" else float(value) for name, value in facts.items()}
    if not np.isin((a, b), (0, 1)).all():
        return Comparison(**facts, test="paired bootstrap", p_value=p_value)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    return Comparison(**facts, test="McNemar, exact", p_value=mcnemar_exact(only_a, only_b), only_a=only_a, only_b=only_b)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """p = min(1, 2 * P(X <= min(only_a, only_b))),  X ~ Binomial(only_a + only_b, 1/2): two-sided. Rows that both have right, or
    both wrong, say nothing about which is better (McNemar 1947; the exact form as in Agresti, Categorical Data Analysis)."""
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** n)


def paired_bootstrap(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """The percentile interval of the mean difference, and the two-sided p-value of "the mean difference is 0":

        p = (1 + #{|mean* - mean| >= |mean|}) / (1 + resamples)

    with mean* the mean of a resample of the rows' differences: shifted by `mean`, the resamples are what chance would make of no
    difference (Efron and Tibshirani 1993, Sec. 16.4)."""
    rng, n, mean = np.random.default_rng(seed), len(differences), differences.mean()
    sizes = np.diff([*range(0, resamples, max(1, AT_A_TIME // n)), resamples])
    means = np.concatenate([differences[rng.integers(n, size=(size, n))].mean(1) for size in sizes])
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    slack = 1e-12 * np.abs(differences).max()  # sums that are equal but for their rounding count as equal
    return float(low), float(high), float(1 + (np.abs(means - mean) >= np.abs(mean) - slack).sum()) / (1 + resamples)
