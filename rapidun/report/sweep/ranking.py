"""Which settings are best: by each criterion, and on several metrics at once (the Pareto set)."""

from __future__ import annotations

from collections.abc import Sequence

from rapidun.report import metrics
from rapidun.report.metrics import better_of
from rapidun.report.statistics import pareto_set
from rapidun.report.sweep.cells import Group


def best_groups(groups: Sequence[Group]) -> dict[str, Group]:
    """The best group by the mean of each criterion; equal means are decided by the other criteria in order."""
    criteria = metrics.criteria()
    best = {}
    for criterion, sign in criteria.items():
        candidates = [group for group in groups if criterion in group.metrics]
        order = {criterion: sign, **criteria}

        def rank(group: Group, order: dict[str, int] = order) -> tuple[float, ...]:
            absent = float("inf")
            return tuple(
                -way * group.metrics[name].mean if name in group.metrics else absent for name, way in order.items()
            )

        if candidates:
            best[criterion] = min(candidates, key=rank)
    return best


def pareto_metrics(groups: Sequence[Group]) -> dict[str, int]:
    """Metric -> direction of the Pareto set: for each axis the first metric that every group has."""
    common = set.intersection(*(set(group.metrics) for group in groups)) if groups else set()
    chosen = [next((name for name in names if name in common), None) for names in metrics.pareto_axes()]
    return {name: better_of(name) for name in chosen if name is not None}


def pareto_groups(groups: Sequence[Group], directions: dict[str, int]) -> list[Group]:
    """The groups that no other one equals or beats on every metric while beating it on one, by their means."""
    if not directions:
        return []
    points = [[group.metrics[name].mean for name in directions] for group in groups]
    return [groups[place] for place in pareto_set(points, signs=list(directions.values()))]
