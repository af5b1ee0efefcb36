"""Scores to weights of 0 or one value: two clusters of the scores, where there are two, or no verdict."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# below this many rows a few of them near each other look like a cluster
FEWEST_ROWS = 10
# where the fit starts: the best cut by least squares, and these shares of low rows
STARTS = (0.05, 0.1, 0.25, 0.5, 0.75)
ROUNDS = 500
# smallest spread within a cluster, as a share of that of all scores: equal scores are no infinite evidence
SMALLEST_SPREAD = 1e-3
# scores are made from float32: a spread of so many roundings of what they are made from is none
ROUNDINGS = 32
# a lower cluster of fewer rows is a few outliers
FEWEST_LOW, SMALLEST_SHARE_LOW = 3, 0.05


class Clusters(NamedTuple):
    """The best two clusters of some scores.

    low: [n], rows of the lower one. means: low, high. spread: standard deviation within them.
    threshold: halfway between the highest low score and the lowest other one; None where no single score decides.
    explained: share of the variance between them, 0 to 1. evidence: for two clusters, see `evidence_for_two`.
    """

    low: Bools
    means: tuple[float, float]
    spread: float
    threshold: float | None
    explained: float
    evidence: float

    @property
    def separation(self) -> float:
        """Distance of the means in units of the spread."""
        return (self.means[1] - self.means[0]) / self.spread if self.spread > 0 else 0.0


class Split(NamedTuple):
    """clusters: the best two. abstained: why no row is dropped, empty where the split holds."""

    clusters: Clusters
    abstained: str

    @property
    def dropped(self) -> Bools:
        return np.zeros_like(self.clusters.low) if self.abstained else self.clusters.low


def two_means(scores: Floats) -> Bools:
    """The cut that leaves the least squares within two clusters (exact one-dimensional 2-means).

    Sorted, the clusters are a prefix and a suffix, so that all n - 1 cuts are tried.

    Example: S = 0, 1, 9, 10: low are 0 and 1.

    Args: scores: [n] float64, finite.
    Returns: which rows are in the lower cluster [n]; equal scores fall on one side, where all are equal none is low.
    """
    ordered = np.sort(scores)
    cuts = ordered[1:] > ordered[:-1]
    if not cuts.any():
        return np.zeros(len(scores), dtype=bool)
    x, sizes = ordered - np.mean(ordered), np.arange(1, len(ordered))
    sums = np.cumsum(x)[:-1]
    between = np.where(cuts, sums**2 / sizes + sums**2 / (len(x) - sizes), -1.0)
    return scores <= ordered[int(np.argmax(between))]


def two_clusters(scores: Floats, *, scale: float = 0.0) -> Clusters:
    """Two normal clusters with a spread in common, fitted by maximum likelihood (EM from several starts).

    Two-means is the special case of equal clusters: with a tenth of the rows wrong it cuts the nine tenths in two,
    since that leaves less variance. The shares are fitted here; the rows of the lower cluster are those that more
    likely belong to it, and are a prefix of the sorted scores.

    Args: scores: [n] float64, finite. scale: size of what they are made from (float32), to know what is rounding.
    Returns: no row low, explained and evidence 0 where scores are equal up to rounding.
    Source: the normal mixture of Day 1969 (Biometrika 56), fitted by EM.
    """
    if len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError("two_clusters: need at least one score, all of them finite")
    # shift and scale change no cluster, and keep squares of huge or tiny scores in range
    centre, unit = float(np.mean(scores / 2)) * 2, float(np.max(np.abs(scores / 2))) * 2
    x = (scores - centre) / unit if unit > 0 else np.zeros_like(scores)
    x = x - np.mean(x)
    variance = float(np.mean(x * x))
    none = Clusters(np.zeros(len(x), dtype=bool), (float(np.mean(scores)),) * 2, 0.0, None, 0.0, 0.0)
    rounding = 8 * float(np.finfo(np.float64).eps)
    if unit > 0:
        rounding = max(rounding, ROUNDINGS * float(np.finfo(np.float32).eps) * (scale / unit))
    if variance <= rounding**2:
        return none
    ordered = np.sort(x)
    starts = [two_means(x), *(x <= ordered[max(1, round(share * len(x))) - 1] for share in STARTS)]
    best, likelihood = None, -math.inf
    for low in starts:
        fitted = _fit(x, low.astype(np.float64), floor=(SMALLEST_SPREAD**2) * variance)
        if fitted is not None and fitted[-1] > likelihood:
            best, likelihood = fitted, fitted[-1]
    if best is None:
        return none
    chance, means, within, _ = best
    low = chance > 0.5
    if not low.any() or low.all():
        return none
    centres = (centre + unit * means[0], centre + unit * means[1])
    share = float(np.mean(low))
    between = share * (1 - share) * float(x[low].mean() - x[~low].mean()) ** 2
    return Clusters(
        low,
        centres,
        unit * math.sqrt(within),
        float(np.max(scores[low]) / 2 + np.min(scores[~low]) / 2),
        min(1.0, between / variance),
        evidence_for_two(x, likelihood),
    )


def evidence_for_two(x: Floats, likelihood: float) -> float:
    """How much likelier two clusters are than any single law: the less of two ratios, at least 0.

    Twice the log-likelihood ratio to one normal law, and four times that to the best of a flat law (uniform), a
    peaked one (Laplace) and lopsided ones (exponential and Gumbel, either way): a tail of low scores, or scores
    spread evenly, are fitted better by two normal clusters than by one, and are one population all the same.

    Args: x: [n], not all equal, of about unit size. likelihood: log-likelihood of the two clusters.
    Source: ours; the factor is set by draws from single laws (tests/stages/mapping/test_split.py).
    """
    n = len(x)
    normal = -n / 2 * (math.log(2 * math.pi * float(np.mean((x - np.mean(x)) ** 2))) + 1)
    peaked = -n * (math.log(2 * float(np.mean(np.abs(x - np.median(x))))) + 1)
    flat = -n * math.log(float(np.ptp(x)))
    lopsided = max(-n * (math.log(float(np.mean(tail))) + 1) for tail in (np.max(x) - x, x - np.min(x)))
    others = max(flat, peaked, lopsided, _gumbel(x), _gumbel(-x))
    return max(0.0, min(2 * (likelihood - normal), 4 * (likelihood - others)))


def _gumbel(x: Floats) -> float:
    """Largest log-likelihood of a Gumbel law with its long tail upwards (fixed point for its scale)."""
    scale = float(np.std(x)) * math.sqrt(6) / math.pi
    for _ in range(200):
        weights = np.exp(-(x - np.min(x)) / scale)
        wanted = float(np.mean(x) - x @ weights / np.sum(weights))
        if abs(wanted - scale) <= 1e-9 * scale:
            break
        scale = (scale + wanted) / 2
    place = float(np.min(x)) - scale * math.log(float(np.mean(np.exp(-(x - np.min(x)) / scale))))
    z = (x - place) / scale
    return -float(np.sum(z + np.exp(-z))) - len(x) * math.log(scale)


def _fit(x: Floats, chance: Floats, *, floor: float) -> tuple[Floats, tuple[float, float], float, float] | None:
    """EM from a start: chance [n] of the lower cluster, means, variance within, log-likelihood; None if one empties."""
    likelihood = -math.inf
    for _ in range(ROUNDS):
        share = float(np.mean(chance))
        if not 1e-9 < share < 1 - 1e-9:
            return None
        low, high = float(chance @ x) / (share * len(x)), float((1 - chance) @ x) / ((1 - share) * len(x))
        within = max(float(chance @ (x - low) ** 2 + (1 - chance) @ (x - high) ** 2) / len(x), floor)
        log_low = math.log(share) - (x - low) ** 2 / (2 * within)
        log_high = math.log(1 - share) - (x - high) ** 2 / (2 * within)
        total = np.logaddexp(log_low, log_high)
        chance = np.exp(log_low - total)
        before, likelihood = likelihood, float(np.sum(total)) - len(x) / 2 * math.log(2 * math.pi * within)
        if likelihood - before < 1e-10 * len(x):
            break
    return (chance, (low, high), within, likelihood) if low <= high else None


def split_scores(
    scores: Floats, *, min_separation: float, min_evidence: float, max_dropped: float, scale: float = 0.0
) -> Split:
    """Split the scores, or abstain where two clusters are not shown or too many rows would be dropped.

    Args: scores: [n] float64, larger = the row belongs to its group. min_separation: between the means, in units of
        the spread within. min_evidence: for two clusters (`evidence_for_two`), which grows with n: a small group must
        fall apart more clearly. max_dropped: largest share of rows to drop. scale: as for `two_clusters`.
    """
    found = two_clusters(scores, scale=scale)
    fewest = max(FEWEST_LOW, math.ceil(SMALLEST_SHARE_LOW * len(scores)))
    share = float(np.mean(found.low))
    abstained = ""
    if len(scores) < FEWEST_ROWS:
        abstained = f"{len(scores)} rows are too few to tell two clusters, {FEWEST_ROWS} needed"
    elif not found.low.any():
        abstained = "their scores do not fall into two clusters"
    elif found.evidence < min_evidence:
        abstained = f"the evidence for two clusters of their scores is {found.evidence:.1f}, {min_evidence:g} needed"
    elif found.separation < min_separation:
        abstained = (
            f"two clusters of their scores are {found.separation:.1f} standard deviations apart, "
            f"{min_separation:g} needed"
        )
    elif found.low.sum() < fewest:
        abstained = f"the lower cluster of their scores has {int(found.low.sum())} rows, {fewest} needed"
    elif share > max_dropped:
        abstained = f"{share:.0%} of the rows would be dropped, {max_dropped:.0%} allowed"
    return Split(found, abstained)


def agreed(splits: list[Split]) -> Split:
    """What several splits of the same rows agree on: rows that each of them drops; one that abstains drops none.

    The clusters told are those with the least evidence; no score decides alone, so that there is no threshold.
    """
    weakest = min((split.clusters for split in splits), key=lambda found: found.evidence)
    low = np.logical_and.reduce([split.clusters.low for split in splits])
    weakest = weakest._replace(low=low, threshold=None)
    if reasons := [split.abstained for split in splits if split.abstained]:
        return Split(weakest, f"{len(reasons)} of {len(splits)} scores abstain: {reasons[0]}")
    return Split(weakest, "" if low.any() else f"{len(splits)} scores agree on no row")


def kept_equally(dropped: Bools) -> Floats:
    """0 for dropped rows, n / (number kept) for the others, so that the mean is 1. Args: dropped: [n], not all true.

    Example: one of four dropped: 0, 4/3, 4/3, 4/3.
    """
    kept = ~dropped
    return np.where(kept, len(dropped) / int(kept.sum()), 0.0)
