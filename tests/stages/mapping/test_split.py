"""Clusters against brute force and direct maximisation, and the rule for abstaining against draws from one law."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from rapidun.stages.mapping.split import agreed, kept_equally, split_scores, two_clusters, two_means

RULE = {"min_separation": 3.0, "min_evidence": 14.0, "max_dropped": 0.6}


def least_squares(scores: list[float]) -> float:
    """Sum of squares within the best of all partitions in two: every subset is tried."""
    best = math.inf
    for size in range(1, len(scores)):
        for rows in itertools.combinations(range(len(scores)), size):
            low = [scores[row] for row in rows]
            high = [scores[row] for row in range(len(scores)) if row not in rows]
            best = min(
                best, sum(math.fsum((s - math.fsum(part) / len(part)) ** 2 for s in part) for part in (low, high))
            )
    return best


def log_likelihood(scores: np.ndarray, share: float, low: float, high: float, spread: float) -> float:
    """Of a mixture of two normal laws, written out."""
    return sum(
        math.log(
            share * math.exp(-((s - low) ** 2) / (2 * spread**2))
            + (1 - share) * math.exp(-((s - high) ** 2) / (2 * spread**2))
        )
        - math.log(spread * math.sqrt(2 * math.pi))
        for s in scores
    )


def two_groups(*, n: int, wrong: int, apart: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.normal(0, 1, wrong), generator.normal(apart, 1, n - wrong)])


@pytest.mark.parametrize("seed", range(6))
def test_two_means_is_the_best_of_all_partitions(seed: int) -> None:
    scores = np.round(np.random.default_rng(seed).standard_normal(9), 1 + seed % 2)
    low = two_means(scores)
    within = sum(float(((part - part.mean()) ** 2).sum()) for part in (scores[low], scores[~low]))
    assert within == pytest.approx(least_squares(scores.tolist()), abs=1e-12)


@pytest.mark.parametrize(("wrong", "apart"), [(15, 4.0), (6, 5.0), (30, 3.0)])
def test_clusters_have_the_largest_likelihood(wrong: int, apart: float) -> None:
    """No point of a fine grid around the fit, nor any of a coarse grid, has a larger likelihood."""
    scores = two_groups(n=60, wrong=wrong, apart=apart)
    found = two_clusters(scores)
    share = float(np.mean(scores < sum(found.means) / 2))
    best = log_likelihood(scores, *best_point(scores))
    assert found.means == pytest.approx(best_point(scores)[1:3], abs=1e-3) and abs(share - wrong / 60) < 0.1
    spreads = found.spread * np.array([0.8, 0.95, 1.0, 1.05, 1.2])
    lows, highs = (mean + np.array([-0.5, -0.05, 0.0, 0.05, 0.5]) for mean in found.means)
    near = [
        log_likelihood(scores, share, low, high, spread)
        for share in np.linspace(0.05, 0.95, 19)
        for low in lows
        for high in highs
        for spread in spreads
    ]
    far = [
        log_likelihood(scores, share, low, high, spread)
        for share in (0.1, 0.25, 0.5, 0.75)
        for low, high in itertools.combinations(np.linspace(scores.min(), scores.max(), 9), 2)
        for spread in (0.5, 1.0, 1.5)
    ]
    assert max(near) <= best + 1e-6 and max(far) <= best + 1e-6
    assert max(near) >= best - 1.0


def test_unequal_clusters_are_found_where_least_squares_cut_elsewhere() -> None:
    scores = two_groups(n=180, wrong=10, apart=4.5)
    wrong = np.arange(180) < 10
    assert (two_clusters(scores).low != wrong).sum() <= 1
    assert (two_means(scores) != wrong).sum() > 20
    split = split_scores(scores, **RULE)
    assert split.abstained == "" and np.array_equal(split.dropped, two_clusters(scores).low)


@pytest.mark.parametrize("factor", [1e-200, 1e-12, 1.0, 1e150])
@pytest.mark.parametrize("shift", [0.0, 3.0, -1e3])
def test_clusters_do_not_depend_on_unit_or_origin(factor: float, shift: float) -> None:
    scores = two_groups(n=40, wrong=10, apart=6.0)
    here, there = two_clusters(scores), two_clusters(factor * (scores + shift))
    assert np.array_equal(here.low, there.low)
    assert there.evidence == pytest.approx(here.evidence, rel=1e-3)
    assert there.separation == pytest.approx(here.separation, rel=1e-4)


def test_the_order_of_the_rows_does_not_matter() -> None:
    scores = two_groups(n=60, wrong=15, apart=4.0)
    order = np.random.default_rng(1).permutation(60)
    assert np.array_equal(two_clusters(scores).low[order], two_clusters(scores[order]).low)


def test_equal_scores_are_no_clusters() -> None:
    for scores in (np.zeros(14), np.full(17, 0.1) * 3, np.ones(10), 0.3 + np.array([0.0, 1e-17] * 6)):
        found = two_clusters(scores)
        assert not found.low.any() and found.explained == found.evidence == 0.0
        assert split_scores(scores, **RULE).abstained == "their scores do not fall into two clusters"


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf"), 0.0]])
def test_refuses_what_it_cannot_split(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="two_clusters"):
        two_clusters(np.array(bad))


def single_laws(generator: np.random.Generator) -> dict[str, Callable[[int], np.ndarray]]:
    return {
        "normal": generator.standard_normal,
        "uniform": generator.random,
        "Beta(5, 1)": lambda n: generator.beta(5, 1, n),
        "Beta(8, 2)": lambda n: generator.beta(8, 2, n),
        "tail of low scores": lambda n: -generator.exponential(size=n),
        "tail of high scores": lambda n: generator.exponential(size=n),
        "lopsided": lambda n: -generator.gamma(4, size=n),
        "heavy tails": lambda n: generator.standard_t(3, n),
        "one outlier": lambda n: np.append(generator.standard_normal(n - 1), -6.0),
        "two outliers": lambda n: np.append(generator.standard_normal(n - 2), [-6.0, -7.0]),
    }


@pytest.mark.parametrize("num_rows", [12, 20, 60, 180])
def test_one_population_is_hardly_ever_split(num_rows: int) -> None:
    """Whatever its shape: at most one draw in twenty, and two in a hundred over all laws."""
    shares = {}
    for law, draw in single_laws(np.random.default_rng(num_rows)).items():
        shares[law] = np.mean([not split_scores(draw(num_rows), **RULE).abstained for _ in range(40)])
    assert max(shares.values()) <= 0.1 and np.mean(list(shares.values())) <= 0.02, shares


def test_scores_that_differ_by_float32_rounding_are_equal() -> None:
    ulp = float(np.spacing(np.float32(0.2)))
    scores = np.where(np.arange(40) < 20, 0.2 - ulp, 0.2)
    assert split_scores(scores, scale=0.2, **RULE).abstained == "their scores do not fall into two clusters"
    # the same difference is a large one where the scores are small
    assert split_scores(scores - 0.2, scale=ulp, **RULE).abstained == ""


def test_evidence_by_hand() -> None:
    """Against the likelihoods of scipy's laws, fitted by scipy."""
    scores = two_groups(n=60, wrong=15, apart=4.0)
    found = two_clusters(scores)
    mixture = log_likelihood(scores, *best_point(scores))
    laws = {
        "uniform": stats.uniform, "laplace": stats.laplace, "expon": stats.expon, "gumbel_r": stats.gumbel_r,
        "gumbel_l": stats.gumbel_l,
    }  # fmt: skip
    others = [float(law.logpdf(scores, *law.fit(scores)).sum()) for law in laws.values()]
    others.append(float(stats.expon.logpdf(-scores, *stats.expon.fit(-scores)).sum()))
    normal = float(stats.norm.logpdf(scores, *stats.norm.fit(scores)).sum())
    assert found.evidence == pytest.approx(min(2 * (mixture - normal), 4 * (mixture - max(others))), rel=1e-3)


def best_point(scores: np.ndarray) -> tuple[float, float, float, float]:
    """The likeliest mixture by scipy's general minimiser."""
    found = optimize.minimize(
        lambda p: -log_likelihood(scores, 1 / (1 + math.exp(-p[0])), p[1], p[2], math.exp(p[3])),
        [-1.0, 0.0, 4.0, 0.0], method="Nelder-Mead", options={"maxiter": 5000, "xatol": 1e-8, "fatol": 1e-10},
    )  # fmt: skip
    share, low, high, spread = found.x
    return 1 / (1 + math.exp(-share)), float(low), float(high), math.exp(spread)


def test_far_clusters_are_split_whatever_their_shares() -> None:
    for n, wrong in ((60, 15), (60, 6), (60, 33), (180, 45), (180, 9)):
        split = split_scores(two_groups(n=n, wrong=wrong, apart=9.0), **RULE)
        assert split.abstained == "" and split.dropped.tolist() == [True] * wrong + [False] * (n - wrong)


def test_abstains_and_says_why() -> None:
    generator = np.random.default_rng(0)
    one = split_scores(generator.standard_normal(60), **RULE)
    assert one.abstained.startswith("the evidence for two clusters of their scores is") and not one.dropped.any()
    near = split_scores(two_groups(n=500, wrong=250, apart=3.4), **(RULE | {"min_separation": 5.0}))
    assert "standard deviations apart, 5 needed" in near.abstained
    outlier = split_scores(np.append(np.random.default_rng(1).standard_normal(59), -12.0), **RULE)
    assert outlier.abstained == "the lower cluster of their scores has 1 rows, 3 needed"
    many = split_scores(two_groups(n=60, wrong=42, apart=9.0), **RULE)
    assert many.abstained == "70% of the rows would be dropped, 60% allowed"
    assert split_scores(two_groups(n=60, wrong=42, apart=9.0), **(RULE | {"max_dropped": 0.7})).abstained == ""
    few = split_scores(np.array([0.0] * 4 + [1.0] * 5), **RULE)
    assert few.abstained == "9 rows are too few to tell two clusters, 10 needed"


def test_agreement_drops_what_all_drop() -> None:
    def with_low(*rows: int) -> np.ndarray:
        scores = 9 + np.random.default_rng(0).standard_normal(20)
        scores[list(rows)] -= 9
        return scores

    one, two = (split_scores(with_low(*rows), **RULE) for rows in ((0, 1, 2, 3), (0, 4, 5, 3)))
    assert np.flatnonzero(agreed([one, two]).dropped).tolist() == [0, 3]
    other = split_scores(with_low(7, 8, 9, 10), **RULE)
    assert agreed([one, other]).abstained == "2 scores agree on no row"
    flat = split_scores(np.ones(20), **RULE)
    assert agreed([one, flat]).abstained == "1 of 2 scores abstain: their scores do not fall into two clusters"
    assert not agreed([one, flat]).dropped.any()


def test_kept_rows_share_the_weight() -> None:
    assert kept_equally(np.array([True, False, False, False])).tolist() == [0.0, 4 / 3, 4 / 3, 4 / 3]
    assert kept_equally(np.zeros(3, dtype=bool)).tolist() == [1.0, 1.0, 1.0]
