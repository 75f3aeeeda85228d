"""Paired tests: do two models' scores on the SAME rows differ by more than chance explains?

| code name | meaning |
|---|---|
| `a`, `b` | the scores of two models, one for each test row; 0 or 1 where an answer is wrong or right |
| `only_a`, `only_b` | the number of rows that only a, or only b, has right. McNemar's test uses nothing else |
| `difference` | mean(a) - mean(b) |

The bootstrap is right for many rows. On few it calls chance significant: at p < 0.05, half of all pairs of rows. There
the signs of the differences are flipped instead, which is exact for any number of rows. Below `FEWEST` rows no sign
flip can reach p < 0.05, and no interval of 95 % exists.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, CONFIDENCE = 10_000, 0.95
FEWEST = 6     # rows that a test needs: 2 of the 2^n flips reach the largest mean, and 2 / 2^5 is above 0.05
EXACT = 14     # rows up to which all 2^n flips are counted, not drawn
MANY = 100     # rows from which on the bootstrap's level is right: 5.4 % in place of 5
AT_A_TIME = 1 << 22  # drawn rows held in memory


@dataclass(frozen=True)
class Comparison:
    """The scores of a and b compared. The interval [low, high] holds the difference with a confidence of 95 %."""
    rows: int
    mean_a: float
    mean_b: float
    difference: float
    low: float | None             # None: too few rows for an interval
    high: float | None
    test: str                     # the test that gave `p_value`
    p_value: float | None         # None: too few rows for the test
    only_a: int | None = None     # None where the test is not McNemar's
    only_b: int | None = None


def compare_scores(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """McNemar's exact test where every score is 0 or 1. Else the paired bootstrap, or flipped signs where fewer than
    `MANY` rows differ, and no test of fewer than `FEWEST` rows.

    The interval is the bootstrap's, or that of subset means below `MANY` rows. Raises ValueError where there are no
    rows, or a and b have different numbers of rows."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} scores; a paired test needs as many of each, and at least one")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is not a finite number; such rows cannot be compared")
    test, low, high, p_value = mean_test(a - b, seed)
    facts = dict(mean_a=a.mean(), mean_b=b.mean(), difference=a.mean() - b.mean())
    facts = {name: float(value) for name, value in facts.items()}
    if not np.isin((a, b), (0, 1)).all():
        return Comparison(len(a), **facts, low=low, high=high, test=test, p_value=p_value)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    p_value = mcnemar_exact(only_a, only_b)
    return Comparison(len(a), **facts, low=low, high=high, test="McNemar, exact", p_value=p_value, only_a=only_a,
                      only_b=only_b)


def mean_test(differences: np.ndarray, seed: int = 0) -> tuple[str, float | None, float | None, float | None]:
    """(test, low, high, p) for the mean of the differences. Rows that do not differ say nothing against chance, so that
    the number of the others chooses the test."""
    n, differ = len(differences), int(np.count_nonzero(differences))
    if n < FEWEST:
        return f"none: fewer than {FEWEST} rows", None, None, None
    low, high, p_value = paired_bootstrap(differences, seed) if n >= MANY else (*subset_interval(differences, seed), 1.)
    if differ >= MANY:
        return "paired bootstrap", low, high, p_value
    return f"sign flips{', exact' * (differ <= EXACT)}", low, high, sign_flip_test(differences, seed)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """p = min(1, 2 * P(X <= min(only_a, only_b))),  X ~ Binomial(only_a + only_b, 1/2).

    The test is two-sided. Rows that both have right, or both wrong, do not show which is better.
    Source: McNemar 1947; the exact form is in Agresti, Categorical Data Analysis."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    if 2 * fewer == n:
        return 1.0
    tail = ways = 1  # ways(i) = n! / (i! (n - i)!), each from the one before: whole numbers, so nothing is rounded
    for i in range(fewer):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / 2 ** n)


def sign_flip_test(differences: np.ndarray, seed: int = 0) -> float:
    """The two-sided p-value of "the mean is 0": the share of all 2^n choices of signs whose mean is at least as far
    from 0 as the mean of the differences. Where 2^n are too many, drawn ones and (1 + hits) / (1 + draws).

    Exact if the differences are distributed evenly about 0 when there is no difference.
    Source: Fisher 1935, The Design of Experiments, Sec. 21."""
    d = differences[differences != 0]
    if not len(d):
        return 1.0
    sums, _ = subset_sums(d, seed)
    flipped = np.abs(d.sum() - 2 * sums)  # the subset's signs are turned
    hits = int((flipped >= np.abs(d.sum()) - 1e-12 * np.abs(d).sum()).sum())  # equal but for rounding counts
    return hits / len(sums) if len(d) <= EXACT else (1 + hits) / (1 + len(sums))


def subset_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of those means that `sign_flip_test` would not refuse: from the k-th smallest to the k-th largest
    mean of the 2^n - 1 subsets that are not empty, k = 2.5 % of 2^n.

    Source: Hartigan 1969, Using Subsample Values as Typical Values."""
    sums, sizes = subset_sums(differences, seed)
    means = np.sort(sums[sizes > 0] / sizes[sizes > 0])
    k = int((1 - CONFIDENCE) / 2 * len(sums))
    return float(means[k - 1]), float(means[-k])


def subset_sums(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(sum, size) of each subset of `values`, the empty one too; of RESAMPLES drawn ones where there are too many."""
    if len(values) > EXACT:
        chosen = np.random.default_rng(seed).integers(2, size=(RESAMPLES, len(values)))
        return chosen @ values, chosen.sum(1)
    sums, sizes = np.zeros(1), np.zeros(1, dtype=np.int64)
    for value in values:
        sums, sizes = np.concatenate((sums, sums + value)), np.concatenate((sizes, sizes + 1))
    return sums, sizes


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
