"""Weights that do not look at which row is which: what the RapidUn weights have to beat."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def uniform(num_rows: int) -> Floats:
    """Every weight 1. Returns: [num_rows]."""
    return np.ones(num_rows)


def shuffled(weights: Floats, *, generator: np.random.Generator) -> Floats:
    """The same weights on other rows: the null hypothesis that it does not matter which row gets which.

    Args: weights: [n], one group's RapidUn weights.
    """
    return generator.permutation(weights)


def random(weights: Floats, *, generator: np.random.Generator) -> Floats:
    """Log-normal weights with the log-variance of the given ones, divided by their mean.

    u_i = exp(s * n_i), n_i standard normal, s^2 = mean (ln w - mean ln w)^2;  w'_i = u_i / mean(u).
    The bounds of the given weights do not apply.

    Args: weights: [n] > 0, one group's RapidUn weights.
    """
    logs = np.log(weights)
    spread = math.sqrt(float(np.mean((logs - np.mean(logs)) ** 2)))
    u = np.exp(spread * generator.standard_normal(len(weights)))
    return u / (math.fsum(u) / len(u))


def group_generator(seed: int, method: str, group: str) -> np.random.Generator:
    """A generator of its own for each (seed, method, group), so that one group's size cannot move the other's."""
    return np.random.default_rng([seed, *f"{method}/{group}".encode()])
