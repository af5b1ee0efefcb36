"""Positive weights whose mean is 1 and that stay within bounds: what mapping gives, and what unlearning may renew."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# exp(-IDLE) is 0 in float64
IDLE = 800.0


class Weights(NamedTuple):
    """weights: [n], mean 1. at_low, at_high: [n], which rows stand at a bound."""

    weights: Floats
    at_low: Bools
    at_high: Bools


def exp_bounded(z: Floats, *, tau: float, low: float, high: float) -> Weights:
    """Turn standardised scores into positive loss weights whose mean is 1, within bounds.

    w_i = clip(c * exp(z_i / tau), low, high), c > 0 such that mean(w) = 1.

    As c grows, rows leave `low` and reach `high` one after another, the largest z first. Between two such events
    the mean is linear in c, so c is found by bisection over the sorted events and then in closed form:
    c = (n - low * n_low - high * n_high) / sum over the rows between of exp(z / tau).

    Example: z = 0, 10, tau 1, [0.5, 3]: the second row would be e^10 times the first, so the first stands at 0.5
    and the second takes the rest, 1.5.

    With low = 0 there is no lower bound: a row far below the others has a weight that float64 rounds to 0.

    Args:
        z: [n] float64, finite, no unit; larger = more weight.
        tau: > 0, larger is flatter. low, high: bounds on w, 0 <= low <= 1 <= high.
    Raises: ValueError if z is empty or not finite, or 1 is not within the bounds.
    Source: ours; the release clips before it normalises.
    """
    need_finite(z, "exp_bounded")
    if not low <= 1.0 <= high:
        raise ValueError(f"exp_bounded: need low <= 1 <= high, got low={low}, high={high}")
    if low == 1.0 or high == 1.0:
        # a mean of 1 leaves no choice
        ones = np.ones_like(z)
        return Weights(ones, ones == low, ones == high)
    log_low, log_high = log_of(low), math.log(high)
    ascending = np.argsort(z, kind="stable")
    with np.errstate(over="ignore"):
        x = np.clip(z[ascending] / tau, -1e300, 1e300)
    # without a lower bound: of two rows further apart than IDLE one has weight 0, unless the other stands at `high`
    x = _close_gaps(x, widest=log_high - log_low + 1.0 if low > 0 else IDLE)

    def weights_at(log_c: float) -> Floats:
        return np.asarray(np.exp(np.clip(x + log_c, log_low, log_high)), dtype=np.float64)

    # ln c at which a row leaves the lower bound or reaches the upper one; where there is no lower bound, one so small
    # that no weight reaches 1 stands in front
    leaves = log_low - x if low > 0 else np.array([-x[-1] - 1.0])
    events = np.unique(np.concatenate([leaves, log_high - x]))
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
    at_low |= w <= 0.0
    back = np.empty_like(ascending)
    back[ascending] = np.arange(len(x))
    return Weights(w[back], at_low[back], at_high[back])


def log_of(bound: float) -> float:
    """ln of a bound; -inf for 0."""
    return math.log(bound) if bound > 0 else -math.inf


def _close_gaps(x: Floats, *, widest: float) -> Floats:
    """Shorten gaps in sorted x to `widest`, where x is so wide that adding to it would lose its small differences.

    Rows on the two sides of a gap wider than ln(high / low) (IDLE for low = 0) are never both between the bounds: its
    width is idle.
    """
    if x[-1] - x[0] < 1e3:
        return x
    return np.concatenate([[0.0], np.cumsum(np.minimum(np.diff(x), widest))])


def need_finite(values: Floats, name: str) -> None:
    if len(values) == 0:
        raise ValueError(f"{name}: need at least one value, got none")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name}: need finite values, got {values[bad[0]]} at index {bad[0]}")
