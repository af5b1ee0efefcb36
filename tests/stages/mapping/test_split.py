"""The best split in two against brute force, and the rule for abstaining against draws from unimodal laws."""

import itertools
import math

import numpy as np
import pytest

from rapidun.stages.mapping.split import agreed, kept_equally, needed_share, split_scores, two_means

RULE = {"min_explained": 0.75, "small_sample": 0.64, "max_dropped": 0.6}


def brute_force(scores: list[float]) -> float:
    """Share of the variance that the best of all partitions in two explains: every subset is tried."""
    n, mean = len(scores), math.fsum(scores) / len(scores)
    total = math.fsum((s - mean) ** 2 for s in scores)
    best = 0.0
    for size in range(1, n):
        for rows in itertools.combinations(range(n), size):
            low = [scores[row] for row in rows]
            high = [scores[row] for row in range(n) if row not in rows]
            within = sum(math.fsum((s - math.fsum(part) / len(part)) ** 2 for s in part) for part in (low, high))
            best = max(best, 1 - within / total)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_two_means_is_the_best_of_all_partitions(seed: int) -> None:
    scores = np.round(np.random.default_rng(seed).standard_normal(9), 1 + seed % 2)
    low, threshold, explained = two_means(scores)
    assert explained == pytest.approx(brute_force(scores.tolist()), abs=1e-12)
    assert np.array_equal(low, scores < threshold) and low.any() and not low.all()


def test_two_means_by_hand() -> None:
    low, threshold, explained = two_means(np.array([9.0, 0.0, 10.0, 1.0]))
    assert low.tolist() == [False, True, False, True]
    assert (threshold, explained) == (5.0, pytest.approx(81 / 82))


@pytest.mark.parametrize("factor", [1e-200, 1e-12, 1.0, 1e150])
@pytest.mark.parametrize("shift", [0.0, 3.0, -1e3])
def test_two_means_does_not_depend_on_unit_or_origin(factor: float, shift: float) -> None:
    scores = np.array([0.0, 1.0, 9.0, 10.0, 2.0])
    low, _, explained = two_means(factor * (scores + shift))
    assert low.tolist() == [True, True, False, False, True]
    assert explained == pytest.approx(two_means(scores)[2], rel=1e-6)


def test_equal_scores_are_no_clusters() -> None:
    for scores in (np.zeros(4), np.full(7, 0.1) * 3, np.ones(1), 0.3 + np.array([0.0, 1e-17, 0.0])):
        low, _, explained = two_means(scores)
        assert not low.any() and explained == 0.0
        assert split_scores(scores, **RULE).abstained == "all scores are equal"


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf"), 0.0]])
def test_two_means_refuses_what_it_cannot_split(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="two_means"):
        two_means(np.array(bad))


@pytest.mark.parametrize("num_rows", [10, 20, 60, 180, 500])
def test_one_cluster_is_seldom_split(num_rows: int) -> None:
    """The share needed is about the 99th percentile for a uniform law; a normal one is split more seldom still."""
    generator = np.random.default_rng(num_rows)
    needed = needed_share(num_rows, min_explained=0.75, small_sample=0.64)
    for draw, most in ((generator.random, 0.02), (generator.standard_normal, 0.01)):
        shares = np.array([two_means(draw(num_rows))[2] for _ in range(2000)])
        assert np.mean(shares > needed) <= most
    shares = np.array([two_means(generator.random(num_rows))[2] for _ in range(2000)])
    assert np.mean(shares > needed) >= 0.002, "far stricter than the docstring says"


def test_two_far_clusters_are_split() -> None:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.normal(0, 1, 15), generator.normal(9, 1, 45)])
    split = split_scores(scores, **RULE)
    assert split.abstained == "" and split.low.tolist() == [True] * 15 + [False] * 45


def test_abstains_and_says_why() -> None:
    generator = np.random.default_rng(0)
    one = split_scores(generator.standard_normal(60), **RULE)
    assert one.abstained.startswith("two clusters explain 0.6") and one.abstained.endswith("0.83 needed")
    many = split_scores(np.array([0.0] * 7 + [1.0] * 3), **RULE)
    assert many.abstained == "it would drop 70% of the rows, 60% allowed"
    assert split_scores(np.array([0.0] * 7 + [1.0] * 3), **(RULE | {"max_dropped": 0.7})).abstained == ""


def test_agreement_drops_what_all_drop() -> None:
    rule = RULE | {"small_sample": 0.0}
    one = split_scores(np.array([0.0, 0.0, 1.0, 1.0, 1.0]), **rule)
    two = split_scores(np.array([0.0, 1.0, 0.0, 1.0, 1.0]), **rule)
    assert agreed([one, two]).low.tolist() == [True, False, False, False, False]
    assert agreed([one, two]).abstained == ""
    other = split_scores(np.array([1.0, 1.0, 0.0, 1.0, 1.0]), **rule)
    assert agreed([one, other]).abstained == "2 scores agree on no row"
    flat = split_scores(np.ones(5), **rule)
    assert agreed([one, flat]).abstained == "1 of 2 scores abstain: all scores are equal"


def test_kept_rows_share_the_weight() -> None:
    assert kept_equally(np.array([True, False, False, False])).tolist() == [0.0, 4 / 3, 4 / 3, 4 / 3]
    assert kept_equally(np.zeros(3, dtype=bool)).tolist() == [1.0, 1.0, 1.0]
