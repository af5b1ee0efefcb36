"""Scores to positive weights whose mean is 1: robust z, then clip and normalise."""

import math
from typing import NamedTuple

import numpy as np

from rapidun.stages.rows.bounded_weights import Floats, Weights, log_of, need_finite


class Standardised(NamedTuple):
    """z: [n]. median, scale: of the scores; scale is 1.4826 * MAD before the floor. floor_hit: scale < mad_floor."""

    z: Floats
    median: float
    scale: float
    floor_hit: bool


def robust_z(scores: Floats, *, mad_floor: float) -> Standardised:
    """Standardise scores by their median and median absolute deviation.

    z = (S - median S) / max(1.4826 * median|S - median S|, mad_floor); so all 0 where S is constant.
    mad_floor is in the unit of the scores.

    Example: S = 0, 1, 2, 3, 10: median 2, deviations 2, 1, 0, 1, 8, MAD 1, z = (S - 2) / 1.4826.

    Raises: ValueError if scores are empty or not finite (names the first bad index).
    """
    need_finite(scores, "robust_z")
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
        tau: > 0, larger is flatter. low, high: bounds on u, 0 <= low <= high, 0 < high.
    Raises: ValueError if z is empty or not finite (names the first bad index).
    Source: RapidUn (arXiv 2512.04457), as released.
    """
    need_finite(z, "exp_clip")
    with np.errstate(over="ignore"):
        x = z / tau
    log_low, log_high = log_of(low), math.log(high)
    clipped = np.clip(x, log_low, log_high)
    if low == 0.0:
        # nothing keeps u from underflow: take out a factor that cancels
        u = np.exp(clipped - np.max(clipped))
        return Weights(u / (math.fsum(u) / len(u)), u == 0.0, x >= log_high)
    # clipped once more, since exp(ln high) may round to just above high
    u = np.clip(np.exp(clipped), low, high)
    # fsum is exact, so that the order of the rows cannot change a weight
    return Weights(u / (math.fsum(u) / len(u)), x <= log_low, x >= log_high)
