"""Weights that do not look at which row is which: what a weighting has to beat."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# exp(HUGE) is far from the largest float64, and n times it as well
HUGE = 600.0


def uniform(num_rows: int) -> Floats:
    """Every weight 1. Returns: [num_rows]."""
    return np.ones(num_rows)


def shuffled(weights: Floats, *, generator: np.random.Generator) -> Floats:
    """The same weights on other rows: the null hypothesis that it does not matter which row gets which.

    Args: weights: [n], one group's weights.
    """
    return generator.permutation(weights)


def random(weights: Floats, *, generator: np.random.Generator) -> Floats:
    """Log-normal weights with the log-variance of the given ones, divided by their mean.

    u_i = exp(s * n_i), n_i standard normal, s^2 = mean (ln w - mean ln w)^2;  w'_i = u_i / mean(u).
    Weights of 0 have no logarithm: as many rows, drawn anew, get 0, and the others are drawn as above.
    The bounds of the given weights do not apply.

    Args: weights: [n] >= 0, one group's weights.
    """
    positive = weights > 0
    if not positive.any():
        return np.zeros_like(weights)
    logs = np.log(weights[positive])
    spread = math.sqrt(float(np.mean((logs - np.mean(logs)) ** 2)))
    logs = spread * generator.standard_normal(len(logs))
    # weights next to 0 (w_min=0) make a spread whose exponential overflows: take out a factor that cancels
    u = np.exp(logs - max(0.0, float(np.max(logs)) - HUGE))
    drawn = np.zeros_like(weights)
    rows = np.arange(len(weights)) if positive.all() else generator.permutation(len(weights))[: len(logs)]
    drawn[rows] = u
    return drawn / (math.fsum(u) / len(weights))


def flat(weights: Floats, *, generator: np.random.Generator) -> Floats:
    """Every row the group's mean: what the weights do beyond their sum."""
    return np.full_like(weights, math.fsum(weights) / len(weights))


# by the name of the null
NULLS: dict[str, Callable[..., Floats]] = {"shuffled": shuffled, "random": random, "uniform": flat}


def group_generator(seed: int, method: str, group: str) -> np.random.Generator:
    """A generator of its own for each (seed, null, group), so that one group's size cannot move the other's."""
    return np.random.default_rng([seed, *f"{method}/{group}".encode()])
