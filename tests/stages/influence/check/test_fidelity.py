"""Estimated scores against exact ones: by hand, against scipy, and with noise of known size."""

import numpy as np
import pytest
from scipy import stats

from rapidun.stages.influence.check.fidelity import (
    effective_k,
    effective_k_interval,
    fidelity,
    mean_ranks,
    shares,
    spearman,
)


def symmetric(num, *, scale, seed):
    made = np.random.default_rng(seed).normal(0, scale, (num, num))
    return np.triu(made, 1) + np.triu(made, 1).T


def test_effective_k_is_the_noise_put_in():
    """Errors of sd 1/sqrt(4,096) over 60 * 59 / 2 pairs: K within 4 sd of its estimate, sqrt(2 / 1,770) = 3.4 %."""
    truth = symmetric(60, scale=0.1, seed=0)
    scores = truth + symmetric(60, scale=4096**-0.5, seed=1)
    found = fidelity(scores, truth, top=10, is_cosine=True)
    assert abs(found.effective_k / 4096 - 1) < 4 * 0.034
    low, high = effective_k_interval(scores, truth)
    assert low < 4096 < high and high / low < 1.6
    # a constant error does not blur a ranking
    assert fidelity(scores + 7, truth, top=10, is_cosine=True).effective_k == pytest.approx(found.effective_k)


def test_by_hand():
    """4 rows. Query 0: exact order 1 2 3, estimated 2 1 3: Spearman 1/2, top 1 differs. The others agree."""
    truth = np.array([[1, 0.1, 0.1, 0.1], [0.9, 1, 0.2, 0.2], [0.5, 0.3, 1, 0.3], [0.1, 0.4, 0.4, 1]])
    scores = truth.copy()
    scores[[1, 2], 0] = 0.5, 0.9
    found = fidelity(scores, truth, top=1, is_cosine=False)
    assert found.effective_k is None
    assert found.spearman_query == pytest.approx((0.5 + 3) / 4)
    assert found.top_overlap == pytest.approx(3 / 4)
    # of the 3 other rows all are in common
    assert fidelity(scores, truth, top=10, is_cosine=False)[3:] == (1.0, 3)


def test_spearman_is_scipys():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, 50).astype(float), generator.normal(size=50)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(x, np.ones(50)) == 0.0
    np.testing.assert_array_equal(mean_ranks(x), stats.rankdata(x))


def test_ranks_share_their_mean():
    """5 1 3 3: ranks 4, 1, and 2.5 twice. Against 1 2 3 4: deviations (1.5 -1.5 0 0) and (-1.5 -0.5 0.5 1.5)."""
    x, y = np.array([5.0, 1, 3, 3]), np.arange(4.0)
    assert mean_ranks(x).tolist() == [4, 1, 2.5, 2.5]
    assert spearman(x, y) == pytest.approx((1.5 * -1.5 + -1.5 * -0.5) / (4.5 * 5) ** 0.5)


def test_effective_k_of_no_error_is_finite():
    assert effective_k(np.zeros(10)) == pytest.approx(1e30)


def test_shares_sum_to_one_and_find_who_decides():
    """Group `loud` has 4 times the norm but the same product for every pair: it decides no ranking."""
    quiet = np.eye(5) + symmetric(5, scale=0.2, seed=2)
    parts = {"loud": np.full((5, 5), 4.0), "quiet": quiet / np.sqrt(np.outer(quiet.diagonal(), quiet.diagonal()))}
    found = {share.name: share for share in shares(parts, {"loud": 10, "quiet": 20})}
    assert found["loud"].of_norm == pytest.approx(4 / 5) and found["quiet"].of_norm == pytest.approx(1 / 5)
    assert found["loud"].of_score == pytest.approx(0.0, abs=1e-12) and found["quiet"].of_score == pytest.approx(1.0)
    assert (found["loud"].numbers, found["quiet"].numbers) == (10, 20)


def test_rows_without_a_gradient_do_not_count():
    gram = np.diag([1.0, 0.0, 1.0, 1.0])
    gram[0, 2] = gram[2, 0] = 0.5
    (only,) = shares({"all": gram}, {"all": 3})
    assert only.of_norm == 1.0 and only.of_score == pytest.approx(1.0)
