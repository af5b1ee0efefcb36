"""The Pareto set against its definition."""

import itertools
import math
import random

import pytest

from rapidun.report.statistics import pareto_set


def brute_force(points: list[tuple[float, ...]], signs: list[int]) -> list[int]:
    """Straight from the definition: every point against every other."""
    found = []
    for i, point in enumerate(points):
        if any(math.isnan(value) for value in point):
            continue
        beaten = False
        for other in points:
            nowhere_worse = all(s * o >= s * p for s, o, p in zip(signs, other, point, strict=True))
            somewhere_better = any(s * o > s * p for s, o, p in zip(signs, other, point, strict=True))
            beaten = beaten or (nowhere_worse and somewhere_better)
        if not beaten:
            found.append(i)
    return found


def test_by_hand() -> None:
    """Small asr, small ppl: (0, 9) and (1, 5) stand; (1, 6) and (2, 5) are beaten by (1, 5)."""
    assert pareto_set([(0, 9), (1, 5), (1, 6), (2, 5)], signs=[-1, -1]) == [0, 1]
    # the other way round
    assert pareto_set([(0, 9), (1, 5), (1, 6), (2, 5)], signs=[1, 1]) == [0, 2, 3]
    assert pareto_set([(0, 9), (1, 5), (1, 6), (2, 5)], signs=[-1, 1]) == [0]


def test_equal_points_stand_together() -> None:
    assert pareto_set([(1, 1), (0, 2), (1, 1), (1, 2)], signs=[-1, -1]) == [0, 1, 2]


def test_nan_is_left_out_and_beats_nothing() -> None:
    assert pareto_set([(math.nan, 0), (1, 1), (0, math.nan)], signs=[-1, -1]) == [1]


def test_no_points() -> None:
    assert pareto_set([], signs=[-1]) == []


def test_a_point_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError):
        pareto_set([(1, 2), (1,)], signs=[-1, -1])


@pytest.mark.parametrize("num_metrics", [1, 2, 3, 4])
def test_is_the_brute_force_set(num_metrics: int) -> None:
    draw = random.Random(num_metrics)
    values = [0.0, 1.0, 2.0, 3.0, math.inf, math.nan]
    for signs in itertools.product((-1, 1), repeat=num_metrics):
        points = [tuple(draw.choices(values, [4, 4, 4, 4, 1, 1], k=num_metrics)) for _ in range(60)]
        assert pareto_set(points, signs=list(signs)) == brute_force(points, list(signs))
