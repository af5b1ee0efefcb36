"""Cells folded into settings: by what they computed, without the seed; by their overrides where that is unknown.

Cells added with another launcher, other threads or other paths fold with the others. Settings whose results are one
(weights that a weighting left equal, and uniform ones) are one group, shown by all of its names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rapidun.config.budget import Budget, Place, Verdict
from rapidun.report.metrics import Kind, kind_of
from rapidun.report.statistics import Interval, mean_interval
from rapidun.report.sweep.cells import Cell, natural
from rapidun.report.sweep.comparisons import SOURCE_KEY

# between the names of one result
SAME = " ≡ "
# so many names of one result are shown
MOST_NAMES = 4
Settings = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells that differ in their seed only; n counts the different results of the finished ones, metrics go over those.

    A run that was made twice, or that no seed changes, is one result.
    """

    # of all cells' `group`
    name: str
    # the overrides of its cells: one tuple for each way in which they were typed
    names: tuple[Settings, ...]
    # as names, without what every group of the sweep shares
    label: str
    seeds: list[str]
    n: int
    metrics: dict[str, Interval]
    # of the means over seeds; unknown where one of the cells is
    verdict: Verdict | None = None
    # seeds that are within the budget by themselves
    num_within: int = 0

    @property
    def settings(self) -> Settings:
        """The first of its names."""
        return self.names[0]

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen: within the budget, or there is none."""
        return self.verdict is None or self.verdict.place is Place.within

    def value(self, key: str, default: str = "") -> str:
        """The value of one override; several where its names differ in it."""
        return same_text([value_in(settings, key, default) for settings in self.names])


def folded(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, each with the name of its group."""
    groups = _Groups()
    for place, cell in enumerate(cells):
        if cell.made is not None:
            groups.join(place, ("made", cell.made.setting, _source(cell)))
    _join_equal(cells, groups)
    known: dict[Settings, object] = {}
    for place, cell in enumerate(cells):
        if cell.made is not None:
            known.setdefault(cell.settings, place)
    for place, cell in enumerate(cells):
        # of what failed, or of what the store no longer tells, the overrides decide
        if cell.made is None and cell.state != "unreadable":
            groups.join(place, known.get(cell.settings, ("named", *cell.settings)))
    first: dict[int, int] = {}
    for place in range(len(cells)):
        first.setdefault(groups.root(place), place)
    return [replace(cell, group=str(first[groups.root(place)])) for place, cell in enumerate(cells)]


class _Groups:
    """Union-find over places of cells and over what makes them belong together."""

    def __init__(self) -> None:
        self._above: dict[object, object] = {}
        self._number: dict[object, int] = {}

    def _find(self, one: object) -> object:
        while one in self._above:
            one = self._above[one]
        return one

    def root(self, place: int) -> int:
        return self._number.setdefault(self._find(place), len(self._number))

    def join(self, one: object, other: object) -> None:
        a, b = self._find(one), self._find(other)
        if a != b:
            self._above[a] = b


def _join_equal(cells: Sequence[Cell], groups: _Groups) -> None:
    """Join settings whose results are one in every seed that both have."""
    results: dict[int, dict[str, set[str]]] = {}
    holders: dict[tuple[str, str], dict[int, int]] = {}
    for place, cell in enumerate(cells):
        if cell.made is not None:
            root = groups.root(place)
            results.setdefault(root, {}).setdefault(cell.seed, set()).add(cell.made.result)
            holders.setdefault((cell.made.result, _source(cell)), {}).setdefault(root, place)
    for found in holders.values():
        (first, place), *others = found.items()
        for root, other in others:
            seeds = results[first].keys() & results[root].keys()
            if all(results[first][seed] == results[root][seed] for seed in seeds):
                groups.join(other, place)


def _source(cell: Cell) -> str:
    """Where a cell comes from where several sweeps are compared: those stand side by side."""
    return cell.values.get(SOURCE_KEY, "")


def group_cells(cells: Sequence[Cell]) -> list[Group]:
    """Groups in the order of their settings; one without a finished cell is left to the failures.

    Args: cells: as `folded` gives them.
    """
    members: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.state == "done":
            members.setdefault(cell.group, []).append(cell)
    names = {group: _names(own) for group, own in members.items()}
    shared = shared_settings([settings for own in names.values() for settings in own])
    groups = []
    for group in sorted(members, key=lambda group: natural(names[group][0])):
        same = repetitions(members[group])
        metrics = dict.fromkeys(name for cell in members[group] for name in cell.metrics)
        groups.append(
            Group(
                name=group,
                names=names[group],
                label=label_of(names[group], shared),
                seeds=list(dict.fromkeys(cell.seed for cell in members[group])),
                n=len(same),
                metrics={name: fold(name, means_of(name, same)) for name in metrics},
            )
        )
    return _told_apart(groups)


def _names(cells: Iterable[Cell]) -> tuple[Settings, ...]:
    return tuple(sorted({cell.settings for cell in cells}, key=natural))


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Labels that two groups share (files changed between two launches) get a number."""
    seen: dict[str, int] = {}
    found = []
    for group in groups:
        number = seen[group.label] = seen.get(group.label, 0) + 1
        again = number > 1
        found.append(replace(group, label=f"{group.label} (other inputs, {number})") if again else group)
    return found


def shared_settings(names: Sequence[Settings]) -> set[str]:
    """The overrides that all have, where there are several to tell apart."""
    return set.intersection(*map(set, names)) if len(set(names)) > 1 else set()


def label_of(names: Sequence[Settings], shared: Iterable[str]) -> str:
    """`unlearning=npo`; of a result with several names `unlearning=npo (mapping=recommended ≡ mapping=uniform)`."""
    common = [text for text in names[0] if all(text in other for other in names)]
    shown = " ".join(text for text in common if text not in set(shared))
    if len(names) == 1:
        return shown or " ".join(common) or "(defaults)"
    rest = [" ".join(text for text in settings if text not in common) or "(defaults)" for settings in names]
    more = f"{SAME}{len(rest) - MOST_NAMES} more" if len(rest) > MOST_NAMES else ""
    ways = SAME.join(rest[:MOST_NAMES]) + more
    return f"{shown} ({ways})" if shown else ways


def value_in(settings: Settings, key: str, default: str = "") -> str:
    found = (text.partition("=")[2] for text in settings if text.partition("=")[0].lstrip("+~") == key)
    return next(found, default)


def same_text(values: Iterable[str]) -> str:
    """`recommended ≡ uniform`: the values of one setting under its names."""
    return SAME.join(dict.fromkeys(values))


def judged_cells(cells: Sequence[Cell], budget: Budget) -> list[Cell]:
    """The cells, the finished ones with their verdict."""
    return [replace(one, verdict=budget.judge(one.metrics)) if one.state == "done" else one for one in cells]


def judged_groups(groups: Sequence[Group], cells: Sequence[Cell], budget: Budget) -> list[Group]:
    """The groups with their verdict. Args: cells: as `judged_cells` gives them.

    A group is judged by its means over seeds, which do not depend on how many there are. Where a cell of it is unknown,
    so is the group: the mean of the others would leave it out without a word.
    """
    members: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.verdict is not None:
            members.setdefault(cell.group, []).append(cell)
    found = []
    for group in groups:
        own = members[group.name]
        unknown = next((cell.verdict for cell in own if cell.verdict and cell.verdict.place is Place.unknown), None)
        means = {name: interval.mean for name, interval in group.metrics.items()}
        within = [all(one.verdict and one.verdict.place is Place.within for one in same) for same in repetitions(own)]
        found.append(replace(group, verdict=unknown or budget.judge(means), num_within=sum(within)))
    return found


def repetitions(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The runs of each result together, in order: a repeated one, or one that its seed does not change, is no further
    sample. Where it is unknown what was computed the seed decides; runs of unknown seed stand alone.
    """
    of_seed = {cell.seed: cell.made.result for cell in reversed(cells) if cell.made is not None}
    found: dict[str, list[Cell]] = {}
    for place, cell in enumerate(cells):
        by_seed = of_seed.get(cell.seed, cell.seed) or f"unknown {place}"
        found.setdefault(cell.made.result if cell.made is not None else by_seed, []).append(cell)
    return list(found.values())


def means_of(name: str, same: Sequence[Sequence[Cell]]) -> list[float]:
    """One value for each repetition: the mean of its runs."""
    values = [[cell.metrics[name] for cell in own if name in cell.metrics] for own in same]
    return [sum(own) / len(own) for own in values if own]


def fold(name: str, values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of one metric over seeds, within the bounds of what the metric can be."""
    kind = kind_of(name)
    if kind in (Kind.share, Kind.score) and all(0 <= value <= 1 for value in values):
        return mean_interval(values, low=0.0, high=1.0)
    return mean_interval(values, low=0.0 if min(values) >= 0 else -math.inf)
