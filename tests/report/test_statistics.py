"""Intervals against slow, obvious versions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rapidun.report.statistics import (
    Bootstrap,
    bootstrap_mean_interval,
    effective_sample_size,
    holm,
    mcnemar_test,
    mean_interval,
    paired_t_test,
    sign_flip_test,
    t_interval,
    wilson_interval,
)


def test_interval_of_three_values_is_that_of_all_27_resamples() -> None:
    """Three values have 27 equally likely resamples; 10,000 draws come close to their quantiles.

    Of 0, 3, 9 the means are 0 (once), 1 (3 times), 2 (3), 3 (4: 3,3,3 and 0,0,9), ... , 9 (once). The 2.5 % quantile is
    0 (1/27 = 3.7 % of the mass), the 97.5 % quantile 9.
    """
    values = [0.0, 3.0, 9.0]
    everything = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    assert len(everything) == 27
    interval = bootstrap_mean_interval(values)
    assert interval.mean == 4.0
    assert interval.n == 3
    exact = np.quantile(everything, [0.025, 0.975], method="inverted_cdf")
    assert (interval.low, interval.high) == tuple(exact) == (0.0, 9.0)
    (low, high) = bootstrap_mean_interval(values, level=0.5)[1:3]
    assert (low, high) == tuple(np.quantile(everything, [0.25, 0.75], method="inverted_cdf"))


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, size=20)
    ours = bootstrap_mean_interval(list(values))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(9))
    assert ours.mean == pytest.approx(values.mean())
    # two draws of 10,000 resamples differ by a few hundredths of the standard error
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.08 * error)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.08 * error)


def test_interval_is_numpys_percentile_of_the_same_resamples() -> None:
    values = np.array([0.0, 0.02, 0.05, 0.01, 0.3])
    draws = np.random.default_rng(7).integers(5, size=(2000, 5))
    low, high = np.percentile(values[draws].mean(axis=1), [5, 95])
    ours = bootstrap_mean_interval(list(values), level=0.9, num_resamples=2000, seed=7)
    assert ours.low == pytest.approx(low, abs=1e-12)
    assert ours.high == pytest.approx(high, abs=1e-12)


def test_interval_repeats_and_seeds_differ() -> None:
    values = list(np.random.default_rng(0).normal(size=12))
    assert bootstrap_mean_interval(values) == bootstrap_mean_interval(values)
    assert bootstrap_mean_interval(values) != bootstrap_mean_interval(values, seed=1)


def test_one_value_has_no_interval() -> None:
    assert bootstrap_mean_interval([0.25]) == (0.25, None, None, 1)


def test_equal_values_have_an_interval_of_no_width() -> None:
    interval = bootstrap_mean_interval([0.1, 0.1, 0.1])
    assert (interval.low, interval.high) == (0.1, 0.1)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one value, got none"):
        bootstrap_mean_interval([])


@pytest.mark.parametrize(("hits", "n"), [(0, 100), (2, 100), (50, 100), (100, 100), (1, 1)])
def test_wilson_agrees_with_scipy(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_effective_sample_size() -> None:
    """Weights 3, 1, 0, 0: (3 + 1)^2 / (9 + 1) = 1.6; equal weights count each row once."""
    assert effective_sample_size([3.0, 1.0, 0.0, 0.0]) == pytest.approx(1.6)
    assert effective_sample_size([0.5] * 7) == pytest.approx(7.0)
    assert effective_sample_size([0.0]) == 0.0


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_t_interval_agrees_with_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(0.3, 0.1, size=n)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    ours = t_interval(list(values))
    assert (ours.mean, ours.low, ours.high) == pytest.approx((values.mean(), theirs.low, theirs.high), rel=1e-10)
    wider = t_interval(list(values), level=0.99)
    assert wider.low is not None and ours.low is not None and wider.low < ours.low


def test_bca_agrees_with_scipy() -> None:
    """Skewed values, where bias and acceleration matter: BCa moves the interval to the right of the percentile one."""
    values = np.random.default_rng(5).exponential(1.0, size=25)
    ours = bootstrap_mean_interval(list(values), method=Bootstrap.bca)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(9))
    error = values.std(ddof=1) / 5
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.08 * error)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.08 * error)
    plain = bootstrap_mean_interval(list(values))
    assert ours.low is not None and plain.low is not None and ours.low > plain.low + 0.02 * error


def test_bca_of_equal_values() -> None:
    interval = bootstrap_mean_interval([0.1] * 12, method=Bootstrap.bca)
    assert (interval.low, interval.high) == (0.1, 0.1)


def test_mean_interval_changes_its_method_at_ten_values() -> None:
    values = list(np.random.default_rng(2).normal(size=10))
    assert mean_interval(values) == bootstrap_mean_interval(values, method=Bootstrap.bca)
    assert mean_interval(values[:9]) == t_interval(values[:9])
    assert mean_interval([0.5]) == (0.5, None, None, 1)
    assert mean_interval([0.0, 0.5], low=0.0, high=1.0)[1:3] == (0.0, 1.0)


def test_paired_t_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.2, 0.05, 6), rng.normal(0.25, 0.05, 6)
    assert paired_t_test(list(first - second)) == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-9)
    assert paired_t_test([0.3]) is None
    assert paired_t_test([0.1, 0.1, 0.1]) is None  # no spread: the t statistic would be infinite
    assert paired_t_test([0.1 + 0.2, 0.3, 0.3]) is None  # nor is rounding a spread


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flips_agree_with_scipy(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 0.5, size=n)
    theirs = stats.permutation_test(
        (differences, np.zeros(n)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert sign_flip_test(list(differences)) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_sign_flips_by_hand_and_by_draws() -> None:
    """1, 1, 1: of 8 patterns only +++ and --- reach |sum| = 3: p = 2/8. All zeros: every pattern does."""
    assert sign_flip_test([1.0, 1.0, 1.0]) == 0.25
    assert sign_flip_test([0.0, 0.0]) == 1.0
    many = list(np.random.default_rng(0).normal(0.4, 1.0, size=20))
    assert sign_flip_test(many) == sign_flip_test(many)
    assert sign_flip_test(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 0), (10, 3), (40, 41)])
def test_mcnemar_agrees_with_scipy(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_test(b, c) == pytest.approx(expected, rel=1e-10)


def test_holm_by_hand() -> None:
    """0.01 * 4 = 0.04; 0.02 * 3 = 0.06; 0.03 * 2 = 0.06 (not below the one before); 0.8 * 1."""
    assert holm([0.03, 0.01, 0.8, 0.02]) == pytest.approx([0.06, 0.04, 0.8, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
