"""Each method's best within the budget, and what makes it fair: equal numbers of trials, rows that chose nothing.

A trial is one setting, whatever the number of its seeds, that has ended: done, failed or pruned.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidun.config.budget import Budget, Place
from rapidun.report import metrics
from rapidun.report.metrics import format_percent, format_value, heading_of, kind_of
from rapidun.report.statistics import expected_best
from rapidun.report.sweep.cells import FAILED, Cell, key_of
from rapidun.report.sweep.comparisons import null_of, weighting_of
from rapidun.report.sweep.groups import Group
from rapidun.report.sweep.ranking import choice

ENDED = ("done", "pruned", *FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What the trials of one method came to."""

    name: str
    # trials by how they ended; all finished ones are within where there is no budget
    within: int
    outside: int
    unknown: int
    failed: int
    pruned: int
    # the best that may be chosen, by `criterion`, and the one outside that misses the budget by least
    best: Group | None
    nearest: Group | None
    # what the methods are judged by: the first criterion that was measured
    criterion: str
    # of the best of as many trials as the method with the fewest has; None where none may be chosen
    expected: float | None
    # the probability that none of so many trials may be chosen
    none: float

    @property
    def num_trials(self) -> int:
        return self.within + self.outside + self.unknown + self.failed + self.pruned

    @property
    def counts(self) -> str:
        """`5 within, 2 outside, 1 failed`; without a budget `5 done, 1 failed`."""
        words = ("within", "outside", "unknown", "failed", "pruned")
        return ", ".join(f"{number} {word}" for word in words if (number := getattr(self, word))) or "none"

    @property
    def expected_text(self) -> str:
        """`3.2 %`, and how often there is nothing to choose."""
        if self.expected is None:
            return "none within"
        text = format_value(self.expected, kind_of(self.criterion))
        return f"{text} (none within: {format_percent(round(self.none, 3))})" if self.none > 0 else text


def compare_trials(cells: Sequence[Cell], groups: Sequence[Group]) -> list[Method]:
    """The methods of a sweep, each with its best setting within the budget, by name.

    A method is the objective or edit of unlearning; where all cells share one, it is the weighting.
    """
    names = method_names(cells)
    # method -> group -> how it ended; a result with several names is a trial of each
    trials: dict[str, dict[str, str]] = {}
    for cell in cells:
        if cell.state in ENDED and cell.state != "unreadable":
            state = "pruned" if cell.state == "pruned" else "failed"
            trials.setdefault(names[id(cell)], {}).setdefault(cell.group, state)
    finished = {group.name for group in groups}
    criterion = next((name for name in metrics.criteria() if any(name in one.metrics for one in groups)), "")
    m = min(map(len, trials.values()), default=0)
    found = []
    for name, own in sorted(trials.items()):
        ended = [state for group, state in own.items() if group not in finished]
        # in the order of the leaderboard, so that exact ties are decided as there
        done = [group for group in groups if group.name in own]
        places = [group.verdict.place if group.verdict else Place.within for group in done]
        eligible = [group for group in done if group.eligible]
        values = [group.metrics[criterion].mean for group in eligible if criterion in group.metrics]
        missed = [(one.verdict.excess, number) for number, one in enumerate(done) if one.verdict and not one.eligible]
        expected, none = (
            expected_best(values, num_trials=len(own), m=m, sign=metrics.better_of(criterion) or -1)
        )  # fmt: skip
        found.append(
            Method(
                name=name, criterion=criterion, expected=expected, none=none, failed=ended.count("failed"),
                pruned=ended.count("pruned"), within=places.count(Place.within), outside=places.count(Place.outside),
                unknown=places.count(Place.unknown), best=choice(eligible, criterion),
                nearest=done[min(missed)[1]] if missed and min(missed)[0] < float("inf") else None,
            )
        )  # fmt: skip
    return found


def fewest(methods: Sequence[Method]) -> int:
    """The smallest number of trials of any method."""
    return min((one.num_trials for one in methods), default=0)


def unequal(methods: Sequence[Method]) -> bool:
    return len({one.num_trials for one in methods}) > 1


def method_names(cells: Sequence[Cell]) -> dict[int, str]:
    """id of each cell -> its method: `unlearning=npo`; where no two differ in that, `mapping=uniform`."""
    ended = [cell for cell in cells if cell.state in ENDED and cell.state != "unreadable"]
    by = {id(cell): f"unlearning={unlearning_of(cell) or '(not recorded)'}" for cell in ended}
    if len(set(by.values())) > 1 or len({_weighting(cell) for cell in ended}) == 1:
        return by
    return {id(cell): _weighting(cell) for cell in ended}


def unlearning_of(cell: Cell) -> str:
    """The objective or edit, or the preset it is chosen by: npo, simnpo_tofu, fisher."""
    return cell.values.get("unlearning.objective") or cell.values.get("unlearning") or cell.objective


def _weighting(cell: Cell) -> str:
    null = null_of(cell)
    return f"mapping={weighting_of(cell) or '(not recorded)'}" + (f" mapping.null={null}" if null != "none" else "")


def warnings_of(
    cells: Sequence[Cell], groups: Sequence[Group], methods: Sequence[Method], budget: Budget | None, sweep_dir: Path
) -> list[str]:
    """What must be known of the choice before anybody believes it, one sentence or two each."""
    found = []
    if unequal(methods):
        counts = ", ".join(f"{one.name} {one.num_trials}" for one in methods)
        m = fewest(methods)
        found.append(
            f"the methods had unequal numbers of trials ({counts}): more trials find a better best. Compare them by "
            f"the expected best of {m} {'trial' if m == 1 else 'trials'}, or give each the same number"
        )
    if budget is not None and groups and not any(group.eligible for group in groups):
        missed = [group for group in groups if group.verdict and group.verdict.place is Place.outside]
        nearest = min(missed, key=lambda group: group.verdict.excess if group.verdict else 0.0, default=None)
        near = "" if nearest is None else f"; the nearest, {nearest.label}, misses it by {excess_text(nearest)}"
        found.append(f"no setting is within the budget, so none is chosen{near}")
    return [*found, *_seeds(groups), *_splits(cells, methods, sweep_dir)]


def excess_text(group: Group) -> str:
    """`4.2 % of the bound`: by how much the budget is missed."""
    return group.verdict.text if group.verdict else ""


def _seeds(groups: Sequence[Group]) -> list[str]:
    """Seeds other than `seed` are settings here, and must not be chosen by."""
    values: dict[str, set[str]] = {}
    for group in groups:
        for override in (text for settings in group.names for text in settings):
            values.setdefault(key_of(override), set()).add(override)
    swept = [key for key, found in values.items() if key.endswith(".seed") and len(found) > 1]
    if not swept:
        return []
    return [
        f"{', '.join(swept)} is swept: each of its values makes settings of its own, so the best of them is the "
        "luckiest one and no choice. Compare within one value"
    ]


def _splits(cells: Sequence[Cell], methods: Sequence[Method], sweep_dir: Path) -> list[str]:
    splits = {cell.split for cell in cells if cell.state == "done" and cell.split}
    chosen = max((one.num_trials for one in methods), default=0) > 1
    how = f"`rapidun report {shlex.quote(str(sweep_dir))} --best-overrides`"
    if len(splits) > 1:
        return [
            f"cells of evaluation.split={' and '.join(sorted(splits))} stand in one table: what is best among them "
            "compares different prompts. Report each split by itself"
        ]
    if not chosen or not splits:
        return []
    if splits == {"test"}:
        return [
            "settings were chosen on the rows that are reported (evaluation.split=test), which flatters the best of "
            "several trials. Run the same command with evaluation.split=val (all but evaluation is kept), then "
            "`rapidun report DIR --best-overrides` prints the commands that evaluate each method's best on test"
        ]
    return [
        f"settings were chosen on validation rows (evaluation.split={', '.join(splits)}): their numbers here are not "
        f"for reporting. {how} prints the commands that evaluate each method's best on test"
    ]


def heading_of_expected(methods: Sequence[Method]) -> str:
    """`ASR seen, expected best of 4`."""
    return f"{heading_of(methods[0].criterion)}, expected best of {fewest(methods)}" if methods else ""
