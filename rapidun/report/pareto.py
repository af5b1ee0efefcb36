"""The Pareto set: which of many points no other one beats."""

import math
from collections.abc import Sequence


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


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better; smaller is better."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
