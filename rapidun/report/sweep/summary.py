"""The summary of a sweep: the best by each criterion, the Pareto set, the methods compared, the failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rapidun.report import metrics
from rapidun.report.metrics import Kind, better_of, format_value, heading_of, kind_of
from rapidun.report.statistics import Interval, pareto_set
from rapidun.report.sweep.cells import FAILED, Cell, Group, cell_folders, group_cells
from rapidun.report.sweep.comparisons import Comparison, compare_methods

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What the cells of a sweep show together."""

    sweep_dir: Path
    cells: list[Cell]
    groups: list[Group]
    # criterion -> the group that is best by it
    best: dict[str, Group]
    # groups that no other group beats on all of pareto_metrics
    pareto: list[Group]
    pareto_metrics: dict[str, int]
    comparisons: list[Comparison]

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

    def main_metrics(self) -> list[str]:
        """Names of the columns that are shown; summary.csv and summary.json hold every number."""
        return metrics.main_columns({name for group in self.groups for name in group.metrics})

    def heading(self, name: str) -> str:
        return heading_of(name)

    def cell_text(self, group: Group, name: str) -> str:
        """`2.0 % [0.0, 4.0]`; without an interval where one seed allows none."""
        interval = group.metrics.get(name)
        return "–" if interval is None else _interval_text(interval, name)

    def best_for(self, group: Group) -> list[str]:
        return [name for name, best in self.best.items() if best is group]

    def table(self) -> Table:
        """The groups as a rich table, the best of each criterion in bold."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.counts, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        table.caption = "Mean and 95 % interval over seeds. * best"
        table.caption_justify = "left"
        table.add_column("settings", overflow="fold", min_width=24)
        table.add_column("n", justify="right")
        judged, shown = metrics.criteria(), self.main_metrics()
        names = [name for name in shown if name in judged] or shown[:4]
        for name in names:
            table.add_column(self.heading(name), justify="right", no_wrap=True)
        for group in self.groups:
            best = self.best_for(group)
            # the interval on a line of its own keeps the table within 80 columns
            cells = [
                Text(
                    self.cell_text(group, name).replace(" [", (" *" if name in best else "") + "\n["),
                    style="bold" if name in best else "",
                )
                for name in names
            ]
            table.add_row(Text(group.label.replace(" ", "\n")), str(group.n), *cells)
        return table


def is_sweep(path: Path) -> bool:
    return bool(cell_folders(path))


def summarise(cells: list[Cell], sweep_dir: Path) -> Summary:
    """Group the cells over seeds and judge them; writes nothing."""
    groups = group_cells(cells)
    axes = pareto_metrics(groups)
    return Summary(
        sweep_dir=sweep_dir,
        cells=cells,
        groups=groups,
        best=best_groups(groups),
        pareto=pareto_groups(groups, axes),
        pareto_metrics=axes,
        comparisons=compare_methods(cells, metrics=metrics.criteria()),
    )


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


def _interval_text(interval: Interval, name: str) -> str:
    kind = kind_of(name)
    text = format_value(interval.mean, kind)
    if interval.low is None or interval.high is None:
        return text
    if kind is Kind.share:
        return f"{text} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{text} [{format_value(interval.low, kind)}, {format_value(interval.high, kind)}]"
