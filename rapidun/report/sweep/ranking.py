"""Which settings are best: by each criterion, and on several metrics at once (the Pareto set)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rapidun.report import metrics
from rapidun.report.metrics import better_of
from rapidun.report.statistics import pareto_set
from rapidun.report.sweep.groups import Group


def comparable(groups: Sequence[Group], name: str | None = None) -> list[Group]:
    """The groups that may be marked: one of a single seed says too little beside others of more.

    Args: name: a metric that they must have; n is how often it was measured.
    """
    counts = {
        id(one): one.n if name is None else one.metrics[name].n for one in groups if name is None or name in one.metrics
    }
    most = max(counts.values(), default=0)
    return [one for one in groups if counts.get(id(one), 0) > (1 if most > 1 else 0)]


def best_groups(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups with the best mean of each criterion: every one that reaches it, the one that `choice` takes first.

    A criterion in which no two of them differ has none.
    """
    best = {}
    for criterion in metrics.criteria():
        candidates = comparable(groups, criterion)
        chosen = choice(candidates, criterion)
        tied = [one for one in candidates if chosen is not None and _equal(one, chosen, criterion)]
        if chosen is not None and len(tied) < len(candidates):
            best[criterion] = [chosen, *(one for one in tied if one is not chosen)]
    return best


def choice(groups: Sequence[Group], criterion: str) -> Group | None:
    """The one group to take: the best mean of a criterion, equal means decided by the other criteria in order."""
    criteria = metrics.criteria()
    order = {criterion: criteria.get(criterion, -1), **criteria}

    def rank(group: Group) -> tuple[float, ...]:
        return tuple(
            -way * group.metrics[name].mean if name in group.metrics else math.inf for name, way in order.items()
        )

    return min(comparable(groups, criterion), key=rank, default=None)


def _equal(one: Group, other: Group, name: str) -> bool:
    """Whether means are equal but for the rounding of their sums."""
    return math.isclose(one.metrics[name].mean, other.metrics[name].mean, rel_tol=1e-9, abs_tol=1e-12)


def pareto_metrics(groups: Sequence[Group]) -> dict[str, int]:
    """Metric -> direction of the Pareto set: for each axis the first metric that every group has."""
    common = set.intersection(*(set(group.metrics) for group in groups)) if groups else set()
    chosen = [next((name for name in names if name in common), None) for names in metrics.pareto_axes()]
    return {name: better_of(name) for name in chosen if name is not None}


def pareto_groups(groups: Sequence[Group], directions: dict[str, int]) -> list[Group]:
    """The groups that no other one equals or beats on every metric while beating it on one, by their means.

    Empty where there are no two that differ.
    """
    candidates = comparable(groups)
    if not any(not _equal(one, candidates[0], name) for one in candidates for name in directions):
        return []
    points = [[group.metrics[name].mean for name in directions] for group in candidates]
    return [candidates[place] for place in pareto_set(points, signs=list(directions.values()))]
