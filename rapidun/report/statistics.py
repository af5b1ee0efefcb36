"""Intervals for means over seeds and for shares of prompts."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """A mean with its interval; low and high are None where one value allows none."""

    mean: float
    low: float | None
    high: float | None
    n: int


def bootstrap_mean_interval(
    values: Sequence[float], *, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of n values with its bootstrap percentile interval.

    Draw n values with replacement num_resamples times; the interval spans the (1 - level)/2 and
    (1 + level)/2 quantiles of the resamples' means. It lies within [min, max] of the values, so with
    few seeds it is too narrow: n is shown beside it.

    Args:
        values: [n] finite floats, one per seed.
    Raises: ValueError if there are no values.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    if not values:
        raise ValueError("bootstrap_mean_interval: need at least one value, got none")
    import numpy as np

    n = len(values)
    array = np.asarray(values, dtype=np.float64)
    if n == 1:
        return Interval(float(array[0]), None, None, 1)
    # around the first value, so that equal values give exactly that value
    means = array[0] + _resampling_matrix(n, num_resamples, seed) @ (array - array[0])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high), n)


@functools.lru_cache(maxsize=32)
def _resampling_matrix(n: int, num_resamples: int, seed: int) -> Any:
    """[num_resamples, n]: share of each value in each resample; many metrics of a sweep share it."""
    import numpy as np

    draws = np.random.default_rng(seed).integers(n, size=(num_resamples, n))
    counts = np.zeros((num_resamples, n))
    np.add.at(counts, (np.arange(num_resamples)[:, None], draws), 1.0)
    return counts / n


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen in n prompts; 0 of 100 gives (0, 0.037), not (0, 0).

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_sample_size(weights: Sequence[float]) -> float:
    """(sum w)^2 / sum w^2: how many rows the weights really use; n for equal weights."""
    squares = sum(weight * weight for weight in weights)
    return sum(weights) ** 2 / squares if squares > 0 else 0.0
