import math

import numpy as np
import pytest

from rapidun.stages.mapping.baselines import group_generator, random, shuffled, uniform

WEIGHTS = np.exp(np.random.default_rng(0).standard_normal(4000) * 0.4)


def test_uniform() -> None:
    assert uniform(3).tolist() == [1.0, 1.0, 1.0]


def test_shuffled_keeps_the_weights_and_moves_them() -> None:
    moved = shuffled(WEIGHTS, generator=group_generator(1, "shuffled", "forget"))
    assert sorted(moved) == sorted(WEIGHTS)
    assert np.mean(moved == WEIGHTS) < 0.01
    assert abs(np.corrcoef(moved, WEIGHTS)[0, 1]) < 4 / math.sqrt(4000)


def test_random_has_the_log_variance_and_mean_one() -> None:
    drawn = random(WEIGHTS, generator=group_generator(1, "random", "forget"))
    assert abs(math.fsum(drawn) / 4000 - 1) < 1e-14
    # sd of a sample's sd: s / sqrt(2 n), here 1.1 %
    assert np.std(np.log(drawn)) == pytest.approx(np.std(np.log(WEIGHTS)), rel=0.045)
    assert abs(np.corrcoef(drawn, WEIGHTS)[0, 1]) < 4 / math.sqrt(4000)


def test_random_of_equal_weights_is_uniform() -> None:
    assert random(np.ones(5), generator=group_generator(0, "random", "retain")).tolist() == [1.0] * 5


def test_generators_depend_on_seed_method_and_group() -> None:
    draws = [
        float(group_generator(*key).standard_normal())
        for key in (
            (1, "random", "forget"),
            (2, "random", "forget"),
            (1, "shuffled", "forget"),
            (1, "random", "retain"),
        )
    ]
    assert len(set(draws)) == 4
    assert draws[0] == float(group_generator(1, "random", "forget").standard_normal())


def test_random_weights_stay_finite_where_some_are_next_to_zero() -> None:
    """w_min=0 leaves weights of 1e-300: their log-variance has an exponential that overflows."""
    weights = np.array([1e-300, 1e-290, 3.0, 1.0])
    found = random(weights, generator=np.random.default_rng(0))
    assert np.isfinite(found).all() and found.sum() == pytest.approx(4.0)
