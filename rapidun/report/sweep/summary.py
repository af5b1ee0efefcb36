"""The summary of a sweep: the best by each criterion, the Pareto set, the methods compared, the failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rapidun.config.budget import Budget, Place, Verdict
from rapidun.report import metrics
from rapidun.report.metrics import Kind, format_value, heading_of, kind_of
from rapidun.report.statistics import Interval
from rapidun.report.sweep.cells import FAILED, Cell, cell_folders
from rapidun.report.sweep.comparisons import Comparison, compare_methods
from rapidun.report.sweep.groups import Group, folded, group_cells, judged_cells, judged_groups
from rapidun.report.sweep.ranking import best_groups, comparable, pareto_groups, pareto_metrics
from rapidun.report.sweep.trials import Method, compare_trials, unequal, warnings_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What the cells of a sweep show together."""

    sweep_dir: Path
    cells: list[Cell]
    groups: list[Group]
    # criterion -> the groups that are best by it, among those within the budget; see ranking.py
    best: dict[str, list[Group]]
    # groups that no other group beats on all of pareto_metrics, among those within the budget
    pareto: list[Group]
    pareto_metrics: dict[str, int]
    comparisons: list[Comparison]
    # bound on damage; None = every finished cell may be chosen
    budget: Budget | None
    methods: list[Method]
    # what must be known of the choice before it is believed
    warnings: list[str]

    @property
    def name(self) -> str:
        return self.sweep_dir.resolve().name

    @property
    def done(self) -> int:
        return sum(cell.state == "done" for cell in self.cells)

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def pruned(self) -> int:
        """Cells that a search stopped early, because they could not win."""
        return sum(cell.state == "pruned" for cell in self.cells)

    @property
    def unfinished(self) -> int:
        return len(self.cells) - self.done - self.failed - self.pruned

    @property
    def failures(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.state in FAILED]

    @property
    def counts(self) -> str:
        """`5 cells: 4 done, 1 failed`."""
        parts = [f"{self.done} done"]
        parts += [
            f"{count} {word}"
            for count, word in ((self.failed, "failed"), (self.pruned, "pruned"), (self.unfinished, "unfinished"))
            if count
        ]
        return f"{len(self.cells)} {'cell' if len(self.cells) == 1 else 'cells'}: {', '.join(parts)}"

    @property
    def candidates(self) -> list[Group]:
        """The groups that may be chosen."""
        return [group for group in self.groups if group.eligible]

    @property
    def shows_methods(self) -> bool:
        """Whether there is something to compare: several methods, or a budget to choose by."""
        return len(self.methods) > 1 or (self.budget is not None and bool(self.methods))

    @property
    def unequal_trials(self) -> bool:
        return unequal(self.methods)

    def places(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many finished cells, and how many settings, are within the budget, outside and unknown."""
        return _places([cell.verdict for cell in self.cells]), _places([group.verdict for group in self.groups])

    @property
    def budget_text(self) -> str:
        """`budget ...: 20 of 24 finished cells within, 3 outside, 1 unknown (without x); 5 of 6 settings within ...`"""
        if self.budget is None:
            return ""
        parts = []
        verdicts = [[cell.verdict for cell in self.cells], [group.verdict for group in self.groups]]
        for word, found in zip(("finished cells", "settings"), verdicts, strict=True):
            counts = _places(found)
            text = f"{counts['within']} of {sum(counts.values())} {word} within, {counts['outside']} outside"
            why = sorted({one.why for one in found if one is not None and one.why})
            text += f", {counts['unknown']} unknown ({'; '.join(why[:3])})" if counts["unknown"] else ""
            parts.append(text)
        return f"budget {self.budget.text}: {'; '.join(parts)}"

    def main_metrics(self) -> list[str]:
        """Names of the columns that are shown; runs.csv and summary.json hold every number."""
        found = {name for group in self.groups for name in group.metrics}
        return metrics.main_columns(found, chosen={cell.detector for cell in self.cells})

    def heading(self, name: str) -> str:
        return heading_of(name)

    def cell_text(self, group: Group, name: str) -> str:
        """`2.0 % [0.0, 4.0]`; without an interval where one seed allows none."""
        interval = group.metrics.get(name)
        return "–" if interval is None else _interval_text(interval, name)

    def best_for(self, group: Group) -> list[str]:
        return [name for name, best in self.best.items() if any(one is group for one in best)]


def is_sweep(path: Path) -> bool:
    return bool(cell_folders(path))


def summarise(cells: list[Cell], sweep_dir: Path, *, budget: Budget | None = None) -> Summary:
    """Fold the cells over seeds and judge them; writes nothing.

    Args: budget: the best, the Pareto set and the comparisons are taken among the settings within it.
    """
    cells = folded(cells)
    groups = group_cells(cells)
    if budget is not None:
        cells = judged_cells(cells, budget)
        groups = judged_groups(groups, cells, budget)
    candidates = [group for group in groups if group.eligible]
    allowed = {group.name for group in candidates}
    axes = pareto_metrics(comparable(candidates))
    methods = compare_trials(cells, groups)
    return Summary(
        sweep_dir=sweep_dir,
        cells=cells,
        groups=groups,
        best=best_groups(candidates),
        pareto=pareto_groups(candidates, axes),
        pareto_metrics=axes,
        comparisons=compare_methods([cell for cell in cells if cell.group in allowed], metrics=metrics.criteria()),
        budget=budget,
        methods=methods,
        warnings=warnings_of(cells, groups, methods, budget, sweep_dir),
    )


def _places(verdicts: list[Verdict | None]) -> dict[str, int]:
    counts = Counter(verdict.place for verdict in verdicts if verdict is not None)
    return {place.value: counts[place] for place in Place}


def _interval_text(interval: Interval, name: str) -> str:
    kind = kind_of(name)
    text = format_value(interval.mean, kind)
    if interval.low is None or interval.high is None:
        return text
    if kind is Kind.share:
        return f"{text} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{text} [{format_value(interval.low, kind)}, {format_value(interval.high, kind)}]"
