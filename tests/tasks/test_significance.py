"""Paired tests, beside scipy and on tables made by hand."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.significance import compare_scores, mcnemar_exact, paired_bootstrap


@pytest.mark.parametrize("only_a,only_b,p", [
    (0, 0, 1.0), (1, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 2 ** 5),
    (1, 9, 2 * (1 + 10) / 2 ** 10), (2, 8, 2 * (1 + 10 + 45) / 2 ** 10)])
def test_mcnemar_by_hand(only_a, only_b, p):
    """2 * the binomial tail, added up by hand."""
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p, abs=1e-15) == mcnemar_exact(only_b, only_a)


@pytest.mark.slow
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_scipys_binomial_test(only_a, only_b):
    stats = pytest.importorskip("scipy.stats", reason="pip install -r requirements-extra.txt")
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def right_and_wrong(both, only_a, only_b, neither):
    a = [1.0] * both + [1.0] * only_a + [0.0] * only_b + [0.0] * neither
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return a, b


def test_right_and_wrong_go_to_mcnemar_and_only_the_rows_that_differ_count():
    small, large = (compare_scores(*right_and_wrong(both, 9, 1, neither)) for both, neither in ((5, 5), (500, 300)))
    assert small.test == large.test == "McNemar, exact"
    assert small.p_value == large.p_value == pytest.approx(2 * 11 / 2 ** 10)
    assert (large.only_a, large.only_b) == (9, 1) and large.difference == pytest.approx(8 / 810)
    # b beside a: the sign turns
    assert compare_scores(*reversed(right_and_wrong(5, 9, 1, 5))).difference == pytest.approx(-8 / 20)


SCORES = np.random.default_rng(3).beta(2, 1, size=(2, 150))
SCORES[1] = 0.8 * SCORES[0] + 0.2 * SCORES[1] - 0.02


def test_other_scores_go_to_the_bootstrap_whose_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats", reason="pip install -r requirements-extra.txt")
    ours = compare_scores(*SCORES)
    scipys = stats.bootstrap(tuple(SCORES), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True,
                             vectorized=True,
                             n_resamples=10_000, method="percentile", rng=np.random.default_rng(5)).confidence_interval
    assert ours.test == "paired bootstrap" and ours.only_a is None
    width = scipys.high - scipys.low
    assert ours.low == pytest.approx(scipys.low, abs=0.03 * width)
    assert ours.high == pytest.approx(scipys.high, abs=0.03 * width)


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.02, 0.03])
def test_the_bootstraps_p_value_is_that_of_the_t_test_on_well_behaved_differences(shift):
    stats = pytest.importorskip("scipy.stats", reason="pip install -r requirements-extra.txt")
    differences = np.random.default_rng(8).normal(size=200)
    differences = 0.1 * (differences - differences.mean()) + shift
    assert paired_bootstrap(differences)[2] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.015)


def test_pairing_is_what_finds_a_small_difference():
    """Control: with b's rows in another order the scores differ by chance only. A test that did not pair would fail."""
    a, b = SCORES
    assert compare_scores(a, b).p_value < 1e-3
    assert compare_scores(a, np.random.default_rng(1).permutation(b)).p_value > 0.1


def test_the_interval_holds_no_difference_as_often_as_it_says():
    """95 % of the intervals of data without a difference hold 0: 190 of 200, give or take three deviations of 3.1."""
    rng = np.random.default_rng(4)
    hits = sum(low <= 0 <= high for low, high, _ in (paired_bootstrap(rng.normal(size=80), seed, 500)
                                                     for seed in range(200)))
    assert 181 <= hits <= 199


def test_equal_scores_differ_by_nothing_and_the_seed_decides_the_rest():
    same = compare_scores([0.5, 0.25, 1.0], [0.5, 0.25, 1.0])
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert compare_scores(*SCORES, seed=1) == compare_scores(*SCORES, seed=1) != compare_scores(*SCORES, seed=2)


@pytest.mark.parametrize("a,b", [([], []), ([1.0], [1.0, 0.0])])
def test_scores_that_are_not_pairs_are_refused(a, b):
    with pytest.raises(ValueError, match=f"{len(a)} and {len(b)} scores; a paired test needs"):
        compare_scores(a, b)
