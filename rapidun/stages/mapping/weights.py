"""Scores to positive weights whose mean is 1: robust z, then clip and normalise, or a bounded solve."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Standardised(NamedTuple):
    """z: [n]. median, scale: of the scores; scale is 1.4826 * MAD before the floor. floor_hit: scale < mad_floor."""

    z: Floats
    median: float
    scale: float
    floor_hit: bool


class Weights(NamedTuple):
    """weights: [n], mean 1. at_low, at_high: [n], which rows stand at a bound."""

    weights: Floats
    at_low: Bools
    at_high: Bools


def robust_z(scores: Floats, *, mad_floor: float) -> Standardised:
    """Standardise scores by their median and median absolute deviation.

    z = (S - median S) / max(1.4826 * median|S - median S|, mad_floor); so all 0 where S is constant.
    mad_floor is in the unit of the scores.

    Example: S = 0, 1, 2, 3, 10: median 2, deviations 2, 1, 0, 1, 8, MAD 1, z = (S - 2) / 1.4826.

    Raises: ValueError if scores are empty or not finite (names the first bad index).
    """
    _check(scores, "robust_z")
    median = float(np.median(scores))
    deviation = scores - median
    scale = 1.4826 * float(np.median(np.abs(deviation)))
    floor_hit = scale < mad_floor
    # no spread and no floor: all scores are 0
    return Standardised(deviation / (max(scale, mad_floor) or 1.0), median, scale, floor_hit)


def exp_clip(z: Floats, *, tau: float, low: float, high: float) -> Weights:
    """Turn standardised influence into positive loss weights whose mean is 1.

    u_i = exp(clip(z_i / tau, ln low, ln high)),  w_i = u_i / mean(u).
    The bounds hold for u: dividing by the mean can carry w outside [low, high].

    Example: z = 0, 10, tau 1, [0.5, 3]: u = 1, 3, mean 2, w = 0.5, 1.5.

    Args:
        z: [n] float64, robust z-scores (no unit); larger = more helpful.
        tau: > 0, larger is flatter. low, high: bounds on u, 0 < low <= high.
    Raises: ValueError if z is empty or not finite (names the first bad index).
    Source: RapidUn (arXiv 2512.04457), as released.
    """
    _check(z, "exp_clip")
    with np.errstate(over="ignore"):
        x = z / tau
    # clipped once more, since exp(ln high) may round to just above high
    u = np.clip(np.exp(np.clip(x, math.log(low), math.log(high))), low, high)
    # fsum is exact, so that the order of the rows cannot change a weight
    return Weights(u / (math.fsum(u) / len(u)), x <= math.log(low), x >= math.log(high))


def exp_bounded(z: Floats, *, tau: float, low: float, high: float) -> Weights:
    """The same, with bounds that hold for the weights themselves.

    w_i = clip(c * exp(z_i / tau), low, high), c > 0 such that mean(w) = 1.

    As c grows, rows leave `low` and reach `high` one after another, the largest z first. Between two such events
    the mean is linear in c, so c is found by bisection over the sorted events and then in closed form:
    c = (n - low * n_low - high * n_high) / sum over the rows between of exp(z / tau).

    Example: z = 0, 10, tau 1, [0.5, 3]: the second row would be e^10 times the first, so the first stands at 0.5
    and the second takes the rest, 1.5.

    Args: as for `exp_clip`, with low <= 1 <= high.
    Raises: ValueError if z is empty or not finite, or 1 is not within the bounds.
    Source: ours; the release clips before it normalises.
    """
    _check(z, "exp_bounded")
    if not low <= 1.0 <= high:
        raise ValueError(f"exp_bounded: need low <= 1 <= high, got low={low}, high={high}")
    if low == 1.0 or high == 1.0:
        # a mean of 1 leaves no choice
        ones = np.ones_like(z)
        return Weights(ones, ones == low, ones == high)
    log_low, log_high = math.log(low), math.log(high)
    ascending = np.argsort(z, kind="stable")
    with np.errstate(over="ignore"):
        x = np.clip(z[ascending] / tau, -1e300, 1e300)
    x = _close_gaps(x, widest=log_high - log_low + 1.0)

    def weights_at(log_c: float) -> Floats:
        return np.asarray(np.exp(np.clip(x + log_c, log_low, log_high)), dtype=np.float64)

    # ln c at which a row leaves the lower bound or reaches the upper one
    events = np.unique(np.concatenate([log_low - x, log_high - x]))
    first, last = 0, len(events) - 1  # mean(weights_at) is low < 1 at the first event and high > 1 at the last
    while last - first > 1:
        middle = (first + last) // 2
        if math.fsum(weights_at(float(events[middle]))) < len(x):
            first = middle
        else:
            last = middle
    log_c = (float(events[first]) + float(events[last])) / 2
    at_low, at_high = x + log_c <= log_low, x + log_c >= log_high
    between = ~(at_low | at_high)
    w = np.where(at_low, low, high)
    if between.any():
        share = np.exp(x[between] - x[between].max())
        rest = math.fsum([len(x), -low * int(at_low.sum()), -high * int(at_high.sum())])
        w[between] = np.clip(rest / math.fsum(share) * share, low, high)
    back = np.empty_like(ascending)
    back[ascending] = np.arange(len(x))
    return Weights(w[back], at_low[back], at_high[back])


def _close_gaps(x: Floats, *, widest: float) -> Floats:
    """Shorten gaps in sorted x to `widest`, where x is so wide that adding to it would lose its small differences.

    Rows on the two sides of a gap wider than ln(high / low) are never both between the bounds: its width is idle.
    """
    if x[-1] - x[0] < 1e3:
        return x
    return np.concatenate([[0.0], np.cumsum(np.minimum(np.diff(x), widest))])


def _check(values: Floats, name: str) -> None:
    if len(values) == 0:
        raise ValueError(f"{name}: need at least one value, got none")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name}: need finite values, got {values[bad[0]]} at index {bad[0]}")
