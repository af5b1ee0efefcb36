"""Membership scores by hand; the AUC by counting pairs and beside scikit-learn; whether intervals cover."""

import math
import zlib
from itertools import product

import numpy as np
import pytest
import torch

from rapidun.stages.evaluation.privacy.membership import (
    NAMES,
    auc,
    auc_interval,
    lowest_mean,
    membership_metrics,
    membership_scores,
    normalised,
)
from rapidun.stages.evaluation.privacy.tokens import TokenStats


def stats(log_probs: list[float], means: list[float] | None = None, stds: list[float] | None = None) -> TokenStats:
    count = len(log_probs)
    parts = (log_probs, means or [-2.0] * count, stds or [0.5] * count, [0.0] * count)
    return TokenStats(*(torch.tensor(part, dtype=torch.float64) for part in parts))


def test_scores_by_hand() -> None:
    """Five tokens, k = 40 %: the two least likely ones are -4 and -3; by their own spread -4 and -1."""
    given = stats([-1.0, -4.0, -2.0, -1.0, -3.0], means=[-2.0, -3.5, -2.0, 0.0, -4.0], stds=[1.0, 0.5, 1.0, 0.25, 2.0])
    found = membership_scores(given, "some words", min_k=0.4)
    assert list(found) == list(NAMES)
    assert found["mia_loss"] == pytest.approx(-2.2)
    assert found["mia_zlib"] == pytest.approx(-2.2 / len(zlib.compress(b"some words")))
    assert found["mia_min_k"] == pytest.approx(-3.5)
    assert found["mia_min_k_pp"] == pytest.approx((-4.0 + -1.0) / 2)  # (1, -1, 0, -4, 0.5)
    with pytest.raises(ValueError, match="at least one response token"):
        membership_scores(stats([]), "", min_k=0.2)


@pytest.mark.parametrize(
    ("count", "share", "taken"), [(4, 0.2, 1), (5, 0.2, 1), (10, 0.2, 2), (10, 0.3, 3), (3, 1.0, 3)]
)
def test_how_many_tokens_are_the_lowest(count: int, share: float, taken: int) -> None:
    values = torch.arange(count, dtype=torch.float64).flip(0)
    assert lowest_mean(values, share) == pytest.approx(sum(range(taken)) / taken)


def test_without_spread_a_token_is_plain_or_impossible() -> None:
    given = stats([-math.log(2), -math.inf], means=[-math.log(2)] * 2, stds=[0.0, 0.0])
    assert normalised(given).tolist() == [0.0, -math.inf]
    assert membership_scores(given, "x", min_k=0.5)["mia_min_k_pp"] == -math.inf
    odd = stats([math.nan, -1.0], means=[math.nan, -1.0], stds=[math.nan, 0.0])
    assert math.isnan(normalised(odd)[0]) and normalised(odd)[1] == 0
    assert all(map(math.isnan, membership_scores(odd, "x", min_k=1.0).values()))


def pairs(members: np.ndarray, others: np.ndarray) -> float:
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(members, others)]
    return sum(won) / len(won)


def test_auc_by_hand() -> None:
    """Larger scores of members are a larger AUC; equal ones count half; impossible rows are least likely."""
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([0.0]), np.array([1.0])) == 0.0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auc(np.array([-np.inf, 2.0]), np.array([1.0, -np.inf])) == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    for odd in (np.array([]), np.array([np.nan])):
        with pytest.raises(ValueError, match="no number"):
            auc(odd, np.array([1.0]))


def test_auc_beside_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    for _ in range(5):
        members, others = rng.integers(0, 6, 17).astype(float), rng.integers(-2, 5, 23).astype(float)
        labels = [1] * len(members) + [0] * len(others)
        expected = sklearn.roc_auc_score(labels, np.concatenate([members, others]))
        assert auc(members, others) == pytest.approx(expected) == pytest.approx(pairs(members, others))


def test_resamples_are_aucs_of_drawn_rows() -> None:
    """The quantiles of AUCs of rows drawn with replacement, one by one."""
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.5, 1, 12), rng.normal(0, 1, 9)
    slow = []
    draws = np.random.default_rng(3)
    one = draws.multinomial(12, np.full(12, 1 / 12), size=200)
    two = draws.multinomial(9, np.full(9, 1 / 9), size=200)
    for m, n in zip(one, two, strict=True):
        slow.append(pairs(np.repeat(members, m), np.repeat(others, n)))
    expected = np.quantile(slow, [0.025, 0.975])
    assert auc_interval(members, others, num_resamples=200, seed=3) == pytest.approx(tuple(expected))


def test_intervals_cover() -> None:
    """Of normal scores one apart the AUC is Phi(1 / sqrt 2) = 0.760; of 95 % intervals most hold it, but not all do."""
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        low, high = auc_interval(rng.normal(1, 1, 40), rng.normal(0, 1, 40), num_resamples=200, seed=seed)
        held += low <= truth <= high
    assert 0.87 <= held / 200 < 1


def test_metrics_leave_out_what_is_no_number() -> None:
    members = [{name: float(value) for name in NAMES} for value in (3, 4, 5)]
    others = [{name: float(value) for name in NAMES} for value in (0, 1)]
    others.append({**dict.fromkeys(NAMES, 2.0), "mia_loss": math.nan})
    found, odd = membership_metrics(members, others, num_resamples=100, seed=0)
    assert odd == {"mia_loss": 1}
    assert all(found[name] == found[f"{name}.low"] == found[f"{name}.high"] == 1.0 for name in NAMES)
    assert membership_metrics(members[:1], others, num_resamples=100, seed=0)[0] == {}
