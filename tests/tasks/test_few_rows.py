"""Paired tests on few rows: chance is called significant no more often than the level says, and McNemar is fast."""
import math

import numpy as np
import pytest

from tasks.significance import FEWEST, compare_scores, mcnemar_exact, paired_bootstrap, sign_flip_test, subset_interval

DRAWS = {"normal": lambda rng, n: rng.normal(size=n), "heavy tails": lambda rng, n: rng.standard_t(2, size=n),
         "few values": lambda rng, n: rng.choice([-0.5, -0.25, 0.0, 0.25, 0.5], size=n)}


def share_significant(draw, rows, repeats, p_value):
    rng = np.random.default_rng(rows)
    return sum(p_value(draw(rng, rows)) < 0.05 for _ in range(repeats)) / repeats


@pytest.mark.parametrize("rows", [6, 8, 12, 24, 60])
@pytest.mark.parametrize("kind", DRAWS)
def test_pure_chance_is_significant_in_at_most_five_of_a_hundred(kind, rows):
    """250 pairs of models that do not differ; 5 % give or take three deviations of 1.4 %."""
    share = share_significant(DRAWS[kind], rows, 250, sign_flip_test)
    one = DRAWS[kind](np.random.default_rng(0), rows) + 0.5
    assert compare_scores(one, np.full(rows, 0.5)).p_value == pytest.approx(sign_flip_test(one - 0.5), abs=1e-9)
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 250)


def test_the_bootstrap_that_it_replaces_called_chance_significant():
    """Control: the same count finds the fault."""
    assert share_significant(DRAWS["normal"], 6, 200, lambda d: paired_bootstrap(d, 0, 1000)[2]) > 0.08


@pytest.mark.parametrize("rows", range(1, FEWEST))
def test_below_six_rows_there_is_no_test_and_no_interval(rows):
    found = compare_scores(0.3 + 0.01 * np.arange(rows), np.zeros(rows))
    assert (found.p_value, found.low, found.high, found.test) == (None, None, None, "none: fewer than 6 rows")
    assert found.difference > 0.29


def test_mcnemar_needs_no_more_rows_as_it_is_never_significant_there():
    found = compare_scores([1.0] * 5, [0.0] * 5)
    assert (found.test, found.p_value, found.low) == ("McNemar, exact", 2 / 2 ** 5, None)


def test_sign_flips_by_hand():
    """Of 2^6 signs of 1, 2, 3, 4, 5, 6 only the two ends reach a sum of 21; with -1 in place of 1, four reach 19."""
    assert sign_flip_test(np.array([1.0, 2, 3, 4, 5, 6])) == 2 / 64
    assert sign_flip_test(np.array([-1.0, 2, 3, 4, 5, 6])) == 4 / 64
    assert sign_flip_test(np.zeros(8)) == 1


def test_a_real_difference_is_found_on_few_rows():
    rng = np.random.default_rng(0)
    a = rng.uniform(size=12)
    found = compare_scores(a + 0.2 + 0.05 * rng.normal(size=12), a)
    assert found.p_value < 0.001 and found.low > 0.1 and found.test == "sign flips, exact"


@pytest.mark.parametrize("rows", [6, 9, 14, 40])
def test_the_interval_leaves_0_out_where_the_test_is_significant(rows):
    rng = np.random.default_rng(rows)
    for _ in range(60):
        d = rng.normal(size=rows) + rng.choice([0, 0.7])
        p, (low, high) = sign_flip_test(d), subset_interval(d)
        if not 0.04 < p < 0.06:  # drawn subsets differ by chance
            assert (low > 0 or high < 0) == (p < 0.05)


@pytest.mark.parametrize("rows", [6, 10, 30])
def test_the_interval_of_few_rows_holds_no_difference_as_often_as_it_says(rows):
    rng = np.random.default_rng(5)
    hits = sum(low <= 0 <= high for low, high in (subset_interval(rng.normal(size=rows), i) for i in range(300)))
    assert 0.95 - 3 * math.sqrt(0.05 * 0.95 / 300) <= hits / 300 <= (0.99 if rows > 6 else 1)


def test_many_equal_rows_beside_few_that_differ_do_not_make_chance_significant():
    """The bootstrap of 200 rows of which 5 differ in one direction: p 0.04. Only five rows say anything: 2 / 2^5."""
    d = np.zeros(200)
    d[:5] = [0.1, 0.2, 0.3, 0.2, 0.1]
    assert compare_scores(d, np.zeros(200)).p_value == 2 / 2 ** 5


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="a score is not a finite number"):
        compare_scores([0.5, float("nan")] * 5, [0.5] * 10)


@pytest.mark.parametrize("only_a,only_b", [(10_000, 10_000), (9_800, 10_200), (20_000, 100), (30_000, 30_500)])
def test_mcnemar_of_60_000_pairs_agrees_with_the_normal_approximation(only_a, only_b):
    p = mcnemar_exact(only_a, only_b)
    z = max(0, abs(only_a - only_b) - 1) / math.sqrt(only_a + only_b)  # the normal approximation, with continuity
    assert p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05, abs=1e-12)
