"""Scores to weights of 0 or one value: the best split of the scores in two, or no verdict."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Split(NamedTuple):
    """low: [n], the rows of the lower cluster. threshold: halfway between the two clusters' means.

    explained: share of the scores' variance between the clusters, 0 to 1. needed: what it had to be.
    abstained: why no row is dropped, empty where the split holds.
    """

    low: Bools
    threshold: float
    explained: float
    needed: float
    abstained: str


def two_means(scores: Floats) -> tuple[Bools, float, float]:
    """The split in two that explains most of the variance (exact one-dimensional 2-means).

    Sorted, the clusters are a prefix and a suffix, so that all n - 1 cuts are tried:
    explained = [k (m_low - m)^2 + (n - k) (m_high - m)^2] / sum_i (S_i - m)^2.

    Example: S = 0, 1, 9, 10: cut after 1, means 0.5 and 9.5, explained 81 / 82, threshold 5.

    Args: scores: [n] float64.
    Returns: which rows are in the lower cluster [n], the threshold, the share explained. Equal scores fall on one side;
        where all are equal no row is low and the share is 0.
    Raises: ValueError if scores are empty or not finite.
    """
    if len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError("two_means: need at least one score, all of them finite")
    # shift and scale change no cut, and keep squares of huge or tiny scores in range
    centre, spread = float(np.mean(scores / 2)) * 2, float(np.max(np.abs(scores / 2))) * 2
    ordered = np.sort(scores)
    x = (ordered - centre) / spread if spread > 0 else np.zeros_like(ordered)
    x = x - np.mean(x)
    n, sizes = len(x), np.arange(1, len(x))
    total = math.fsum(x * x)
    # differences of a few roundings are no clusters
    rounding = 8 * np.finfo(np.float64).eps
    cuts = ordered[1:] > ordered[:-1]
    if not cuts.any() or total <= n * rounding**2:
        return np.zeros(n, dtype=bool), float(ordered[0]), 0.0
    sums = np.cumsum(x)[:-1]
    rest = -sums
    between = np.where(cuts, sums**2 / sizes + rest**2 / (n - sizes), -1.0)
    cut = int(np.argmax(between))
    low_mean, high_mean = float(np.mean(ordered[: cut + 1])), float(np.mean(ordered[cut + 1 :]))
    return scores <= ordered[cut], (low_mean + high_mean) / 2, min(1.0, float(between[cut]) / total)


def needed_share(num_rows: int, *, min_explained: float, small_sample: float) -> float:
    """Share of the variance that a split of n rows must explain: min_explained + small_sample / sqrt(n), at most 1.

    A uniform law, the unimodal one that a split explains best, is explained to 3/4 by the best cut of many rows and
    to more by that of few: 0.75 + 0.64 / sqrt(n) is the 99th percentile for n of 10 to 500 (0.95 at 10, 0.89 at 20,
    0.83 at 60, 0.80 at 180; tests/stages/mapping/test_split.py draws it anew).
    """
    return min(1.0, min_explained + small_sample / math.sqrt(num_rows))


def split_scores(scores: Floats, *, min_explained: float, small_sample: float, max_dropped: float) -> Split:
    """Split the scores, or abstain where the split says too little or would drop too many rows.

    Args: scores: [n] float64, larger = the row belongs to its group. max_dropped: largest share of rows to drop.
    """
    low, threshold, explained = two_means(scores)
    needed = needed_share(len(scores), min_explained=min_explained, small_sample=small_sample)
    share = float(np.mean(low))
    abstained = ""
    if not low.any():
        abstained = "all scores are equal"
    elif explained < needed:
        abstained = f"two clusters explain {explained:.2f} of the scores' variance, {needed:.2f} needed"
    elif share > max_dropped:
        abstained = f"it would drop {share:.0%} of the rows, {max_dropped:.0%} allowed"
    return Split(low, threshold, explained, needed, abstained)


def agreed(splits: list[Split]) -> Split:
    """What several splits of the same rows agree on: rows that each of them drops; one that abstains drops none.

    Threshold, explained and needed are those of the split that is closest to abstaining.
    """
    weakest = min(splits, key=lambda split: split.explained - split.needed)
    low = np.logical_and.reduce([split.low for split in splits])
    if reasons := [split.abstained for split in splits if split.abstained]:
        return weakest._replace(low=low, abstained=f"{len(reasons)} of {len(splits)} scores abstain: {reasons[0]}")
    return weakest._replace(low=low, abstained="" if low.any() else f"{len(splits)} scores agree on no row")


def kept_equally(dropped: Bools) -> Floats:
    """0 for dropped rows, n / (number kept) for the others, so that the mean is 1. Args: dropped: [n], not all true.

    Example: one of four dropped: 0, 4/3, 4/3, 4/3.
    """
    kept = ~dropped
    return np.where(kept, len(dropped) / int(kept.sum()), 0.0)
