"""Intervals for means over seeds and shares of prompts, tests of paired differences, Pareto sets, best of trials."""

import functools
import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

# below this many values a bootstrap of the mean is far too narrow, and Student's t is used
FEW = 10
# up to this many differences every one of the 2^n sign patterns is tried
EXACT_FLIPS = 14


class Interval(NamedTuple):
    """A mean with its interval; low and high are None where one value allows none."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Bootstrap(Enum):
    percentile = "percentile"
    bca = "bca"  # bias-corrected and accelerated


def mean_interval(values: Sequence[float], *, low: float = -math.inf, high: float = math.inf) -> Interval:
    """Mean over seeds with its 95 % interval: Student's t below 10 values, the BCa bootstrap from 10 on.

    Args:
        values: [n] finite floats, one per seed. low, high: bounds of what the values can be; the interval stays inside.
    Raises: ValueError if there are no values.
    """
    found = t_interval(values) if len(values) < FEW else bootstrap_mean_interval(values, method=Bootstrap.bca)
    if found.low is None or found.high is None:
        return found
    return found._replace(low=max(low, found.low), high=min(high, found.high))


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """mean +- t_{n-1} * s / sqrt(n), s with n - 1 in the denominator; right for normal values, whatever n >= 2.

    Raises: ValueError if there are no values.
    Source: Student (1908), Biometrika 6, 1-25.
    """
    array = _array(values, "t_interval")
    n = len(array)
    mean = _mean(array)
    if n == 1:
        return Interval(mean, None, None, 1)
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1 + level) / 2)) * _spread(array) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_mean_interval(
    values: Sequence[float],
    *,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
    method: Bootstrap = Bootstrap.percentile,
) -> Interval:
    """Mean of n values with its bootstrap interval.

    Draw n values with replacement num_resamples times. `percentile`: the (1 - level)/2 and (1 + level)/2 quantiles of
    the resamples' means. `bca`: quantiles moved by the bias z0 and the acceleration a (from the jackknife),
    Phi(z0 + (z0 + z) / (1 - a (z0 + z))). Both lie within [min, max] of the values: too narrow with few seeds.

    Args:
        values: [n] finite floats.
    Raises: ValueError if there are no values.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 and 14.3.
    """
    import numpy as np

    array = _array(values, "bootstrap_mean_interval")
    n = len(array)
    if n == 1:
        return Interval(float(array[0]), None, None, 1)
    # around the first value, so that equal values give exactly that value
    means = array[0] + _resampling_matrix(n, num_resamples, seed) @ (array - array[0])
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    if method is Bootstrap.bca:
        quantiles = _bca_quantiles(array, means, quantiles)
    low, high = np.quantile(means, quantiles)
    return Interval(_mean(array), float(low), float(high), n)


def _bca_quantiles(array: Any, means: Any, quantiles: list[float]) -> list[float]:
    from scipy.special import ndtr, ndtri

    mean = array.mean()
    # ties count half, since means of few values repeat
    below = float(((means < mean).sum() + (means <= mean).sum()) / (2 * len(means)))
    # jackknife means differ from the mean by (mean - x_i) / (n - 1); the factor cancels in the acceleration
    pull = array - mean
    squares = float((pull**2).sum())
    if squares == 0 or not 0 < below < 1:
        return quantiles
    bias, acceleration = float(ndtri(below)), float((pull**3).sum()) / (6 * squares**1.5)
    shifted = [bias + float(ndtri(quantile)) for quantile in quantiles]
    return [float(ndtr(bias + place / (1 - acceleration * place))) for place in shifted]


@functools.lru_cache(maxsize=32)
def _resampling_matrix(n: int, num_resamples: int, seed: int) -> Any:
    """[num_resamples, n]: share of each value in each resample; many metrics of a sweep share it."""
    import numpy as np

    draws = np.random.default_rng(seed).integers(n, size=(num_resamples, n))
    counts = np.zeros((num_resamples, n))
    np.add.at(counts, (np.arange(num_resamples)[:, None], draws), 1.0)
    return counts / n


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p that the mean of paired differences is 0; None where it cannot be had (n = 1, no spread).

    t = mean / (s / sqrt(n)) with n - 1 degrees of freedom.
    """
    array = _array(differences, "paired_t_test")
    spread = _spread(array) if len(array) > 1 else 0.0
    if spread == 0:
        return None
    from scipy.special import stdtr

    t = _mean(array) / (spread / math.sqrt(len(array)))
    return float(2 * stdtr(len(array) - 1, -abs(t)))


def sign_flip_test(differences: Sequence[float], *, num_draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided permutation p that paired differences are symmetric about 0.

    p is the share of sign patterns whose mean is at least as large as the one seen. Exact (all 2^n patterns) up to
    n = 14, else num_draws random patterns, the observed one counted among them.
    The smallest p of n differences is 2 / 2^n: with 5 seeds 0.0625, whatever the effect.

    Source: Fisher, The Design of Experiments (1935), section 21.
    """
    import numpy as np

    array = _array(differences, "sign_flip_test")
    n = len(array)
    exact = n <= EXACT_FLIPS
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(num_draws, n))
    sums = np.abs(signs @ array)
    # rounding must not part patterns with the same sum
    hits = int((sums >= abs(array.sum()) - 1e-12 * np.abs(array).sum()).sum())
    return hits / len(sums) if exact else (hits + 1) / (num_draws + 1)


def mcnemar_test(only_first: int, only_second: int) -> float:
    """Two-sided exact p that two yes/no answers to the same prompts say yes equally often.

    Under that hypothesis the prompts on which they differ fall to either side like coins:
    p = min(1, 2 * sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c)).

    Args:
        only_first, only_second: b and c, prompts where only the first, only the second says yes.
    Source: McNemar (1947), Psychometrika 12, 153-157, in its exact form.
    """
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of m p values.

    The i-th smallest becomes max over j <= i of (m - j + 1) p_(j), at most 1.
    All adjusted p below 0.05 taken together are wrong anywhere with probability below 0.05, however the tests depend.

    Source: Holm (1979), Scand. J. Statist. 6, 65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen in n prompts; 0 of 100 gives (0, 0.037), not (0, 0).

    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def pareto_set(points: Sequence[Sequence[float]], *, signs: Sequence[int]) -> list[int]:
    """Find the points that no other point equals or beats everywhere while beating it somewhere.

    Points with the same coordinates stand or fall together. A point with a NaN is in no order with the others and is
    left out. After sorting, whatever beats a point stands before it, so each is compared with the set so far only.

    Args:
        points: [num_points][num_metrics]. signs: [num_metrics], -1 = smaller is better, 1 = larger is better.
    Returns: indices into `points`, ascending.
    Raises: ValueError if a point has another number of coordinates than there are signs.
    """
    costs = {
        index: tuple(-sign * value for value, sign in zip(point, signs, strict=True))
        for index, point in enumerate(points)
        if not any(math.isnan(value) for value in point)
    }
    front: list[int] = []
    for index in sorted(costs, key=lambda index: costs[index]):
        if not any(_beats(costs[other], costs[index]) for other in front):
            front.append(index)
    return sorted(front)


def expected_best(values: Sequence[float], *, num_trials: int, m: int, sign: int) -> tuple[float | None, float]:
    """Expect the best value of m trials drawn without replacement out of num_trials, some of which may not be chosen.

    With the K values sorted best first, x_(1) .. x_(K), and N trials in all, a subset of size m has x_(i) as its best
    with probability C(N - i, m - 1) / C(N, m), and none that may be chosen with C(N - K, m) / C(N, m).

    Args:
        values: [K] of the trials that may be chosen, K <= num_trials. sign: -1 = smaller is better, 1 = larger is.
    Returns: the expected best where there is one (None for K = 0), and the probability that there is none.
    Raises: ValueError unless 1 <= m <= num_trials and K <= num_trials.
    Source: order statistics of a sample of a finite population; Dodge et al. (2019), arXiv 1909.03004, draw with
        replacement instead.
    """
    if not 1 <= m <= num_trials or len(values) > num_trials:
        raise ValueError(f"expected_best: need 1 <= m <= num_trials, got m={m}, {num_trials}, {len(values)} values")
    best_first = sorted(values, reverse=sign > 0)
    subsets = math.comb(num_trials, m)
    none = math.comb(num_trials - len(values), m) / subsets
    if not best_first:
        return None, none
    # around the best, so that equal values give exactly that value
    weights = [math.comb(num_trials - place, m - 1) / subsets for place in range(1, len(values) + 1)]
    steps = [value - best_first[0] for value in best_first]
    return best_first[0] + math.fsum(w * s for w, s in zip(weights, steps, strict=True)) / math.fsum(weights), none


def effective_sample_size(weights: Sequence[float]) -> float:
    """(sum w)^2 / sum w^2: how many rows the weights really use; n for equal weights."""
    squares = sum(weight * weight for weight in weights)
    return sum(weights) ** 2 / squares if squares > 0 else 0.0


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; smaller is better."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _array(values: Sequence[float], who: str) -> Any:
    import numpy as np

    if not len(values):
        raise ValueError(f"{who}: need at least one value, got none")
    return np.asarray(values, dtype=np.float64)


def _mean(array: Any) -> float:
    """Mean around the first value, so that equal values give exactly that value."""
    return float(array[0] + (array - array[0]).mean())


def _spread(array: Any) -> float:
    """Standard deviation with n - 1 in the denominator; exactly 0 for equal values, and for rounding alone."""
    import numpy as np

    centred = array - array[0]
    spread = float(centred.std(ddof=1))
    return spread if spread > 1e-12 * float(np.abs(array).max()) else 0.0
