"""The summary of a sweep: the best by each criterion, the Pareto set, the methods compared, the failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rapidun.base.errors import DataError
from rapidun.base.files import write_json, write_text
from rapidun.report.metrics import HEADINGS, Kind, format_value
from rapidun.report.statistics import Interval
from rapidun.report.sweep.cells import FAILED, Cell, Group, cell_folders, group_cells, kind_of, read_cells
from rapidun.report.sweep.comparisons import Comparison, compare_methods

if TYPE_CHECKING:
    from rich.table import Table

# what a sweep is judged by: name -> -1 smaller is better, 1 larger is better; ties go on to the next one
CRITERIA = {"asr_seen": -1, "ppl_clean": -1, "exact_match_clean": 1, "rougeL_clean": 1}
# the Pareto set: forgetting, perplexity, and the first measure of clean answers that every group has
PARETO = (("asr_seen", "asr_seen_likelihood"), ("ppl_clean",), ("exact_match_clean", "rougeL_clean"))
# columns of the tables on screen and page; summary.csv and summary.json hold every number
SHOWN = ("asr_seen", "asr_seen_likelihood", "asr_ood", "asr_unseen_family", "false_trigger_rate", *list(CRITERIA)[1:],
         "rougeL_recovered")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What write_sweep_summary found and wrote."""

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
        """Names of the columns that are shown: those of SHOWN that any group has, else the first few there are."""
        found = {name for group in self.groups for name in group.metrics}
        others = sorted(name for name in found if not name.startswith(("before.", "seconds.", "peak_memory_gb.")))
        return [name for name in SHOWN if name in found] or others[:6]

    def heading(self, name: str) -> str:
        return HEADINGS.get(name, name)

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
        names = [name for name in self.main_metrics() if name in CRITERIA] or self.main_metrics()[:4]
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


def write_sweep_summary(sweep_dir: Path) -> Summary:
    """Read every cell of a sweep folder; write summary.csv, summary.json and summary.md into it.

    summary.csv: one line per group, `<metric>`, `<metric>.low`, `<metric>.high` (the 95 % interval) per metric.
    summary.json: the same, every cell by itself, the Pareto set and the comparisons of methods. A cell that failed,
    cannot be read or was never started is listed, not dropped.

    Raises: DataError if the folder holds no run folders.
    """
    from rapidun.report.sweep.exports import as_csv, as_json, as_markdown

    if not sweep_dir.is_dir() or not is_sweep(sweep_dir):
        raise DataError(f"{sweep_dir}: need a sweep folder, with a run folder for each cell; found no cells in it")
    summary = summarise(read_cells(sweep_dir), sweep_dir)
    write_json(sweep_dir / "summary.json", as_json(summary))
    write_text(sweep_dir / "summary.csv", as_csv(summary))
    write_text(sweep_dir / "summary.md", as_markdown(summary))
    return summary


def summarise(cells: list[Cell], sweep_dir: Path) -> Summary:
    """Group the cells over seeds and judge them; writes nothing."""
    groups = group_cells(cells)
    metrics = pareto_metrics(groups)
    return Summary(
        sweep_dir=sweep_dir,
        cells=cells,
        groups=groups,
        best=best_groups(groups),
        pareto=pareto_groups(groups, metrics),
        pareto_metrics=metrics,
        comparisons=compare_methods(cells, metrics=CRITERIA),
    )


def best_groups(groups: Sequence[Group]) -> dict[str, Group]:
    """The best group by the mean of each criterion; equal means are decided by the other criteria in order."""
    best = {}
    for criterion, sign in CRITERIA.items():
        candidates = [group for group in groups if criterion in group.metrics]
        order = {criterion: sign, **CRITERIA}

        def rank(group: Group, order: dict[str, int] = order) -> tuple[float, ...]:
            absent = float("inf")
            return tuple(
                -way * group.metrics[name].mean if name in group.metrics else absent for name, way in order.items()
            )

        if candidates:
            best[criterion] = min(candidates, key=rank)
    return best


def pareto_metrics(groups: Sequence[Group]) -> dict[str, int]:
    """Metric -> direction of the Pareto set: of each line of PARETO the first that every group has."""
    chosen = [
        next((name for name in names if groups and all(name in group.metrics for group in groups)), None)
        for names in PARETO
    ]
    directions = {**CRITERIA, "asr_seen_likelihood": -1}
    return {name: directions[name] for name in chosen if name is not None}


def pareto_groups(groups: Sequence[Group], metrics: dict[str, int]) -> list[Group]:
    """The groups that no other one equals or beats on every metric while beating it on one, by their means."""
    points = [tuple(-way * group.metrics[name].mean for name, way in metrics.items()) for group in groups]
    if not metrics:
        return []
    return [
        group
        for group, point in zip(groups, points, strict=True)
        if not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
    ]


def _interval_text(interval: Interval, name: str) -> str:
    kind = kind_of(name)
    text = format_value(interval.mean, kind)
    if interval.low is None or interval.high is None:
        return text
    if kind is Kind.share:
        return f"{text} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{text} [{format_value(interval.low, kind)}, {format_value(interval.high, kind)}]"
