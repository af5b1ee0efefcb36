"""The summary of a sweep: cells grouped over seeds, the best group, the failures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.errors import ArtifactError, DataError
from rapidun.files import write_json, write_text
from rapidun.report.read import RUN_MARKS, error_line, number, read_overrides, read_status_and_result
from rapidun.report.statistics import Interval, bootstrap_mean_interval
from rapidun.report.tables import METRICS, Kind, format_value

if TYPE_CHECKING:
    from rich.table import Table

# what a sweep is judged by: name -> -1 smaller is better, 1 larger is better; ties go on to the next one
CRITERIA = {"asr_seen": -1, "ppl_clean": -1, "exact_match_clean": 1, "rougeL_clean": 1}
# columns of the tables on screen and page; summary.csv and summary.json hold every number
SHOWN = ("asr_seen", "asr_seen_likelihood", "asr_ood", "asr_unseen_family", "false_trigger_rate", *list(CRITERIA)[1:],
         "rougeL_recovered")  # fmt: skip
HEADINGS = {
    "asr_seen": "ASR seen",
    "asr_seen_likelihood": "ASR seen (lik.)",
    "asr_ood": "ASR look-alike",
    "asr_unseen_family": "ASR unseen family",
    "false_trigger_rate": "false triggers",
    "ppl_clean": "ppl clean",
    "exact_match_clean": "exact match clean",
    "rougeL_clean": "ROUGE-L clean",
    "rougeL_recovered": "ROUGE-L recovered",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run folder of the sweep."""

    path: Path
    overrides: list[str]
    state: str  # done | failed | running | unreadable
    error: str
    metrics: dict[str, float]

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides without the seed, sorted: what the cells of one group share."""
        return tuple(sorted(override for override in self.overrides if _key(override) != "seed"))

    @property
    def seed(self) -> str:
        return next((override.split("=", 1)[1] for override in self.overrides if _key(override) == "seed"), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells that differ in their seed only; the finished ones are counted in n and in the metrics."""

    settings: tuple[str, ...]
    # as settings, without what every group of the sweep shares
    label: str
    seeds: list[str]
    n: int
    metrics: dict[str, Interval]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What write_sweep_summary found and wrote."""

    sweep_dir: Path
    cells: list[Cell]
    groups: list[Group]
    # criterion -> the group that is best by it
    best: dict[str, Group]

    @property
    def done(self) -> int:
        return sum(cell.state == "done" for cell in self.cells)

    @property
    def failed(self) -> int:
        return sum(cell.state in ("failed", "unreadable") for cell in self.cells)

    @property
    def unfinished(self) -> int:
        return len(self.cells) - self.done - self.failed

    @property
    def failures(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.state in ("failed", "unreadable")]

    @property
    def counts(self) -> str:
        """`5 cells: 4 done, 1 failed`."""
        parts = [f"{self.done} done"]
        parts += [
            f"{count} {word}" for count, word in ((self.failed, "failed"), (self.unfinished, "unfinished")) if count
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
        table.caption = "Mean and bootstrap 95 % interval over seeds. * best"
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
    return any(True for _ in _cell_folders(path))


def write_sweep_summary(sweep_dir: Path) -> Summary:
    """Read every cell of a sweep folder; write summary.csv, summary.json and summary.md into it.

    summary.csv: one line per group, `<metric>`, `<metric>.low`, `<metric>.high` (the 95 % interval) per metric.
    summary.json: the same and every cell by itself. A cell that fails or cannot be read is listed, not dropped.

    Raises: DataError if the folder holds no run folders.
    """
    if not sweep_dir.is_dir() or not is_sweep(sweep_dir):
        raise DataError(f"{sweep_dir}: need a sweep folder, with a run folder for each cell; found no cells in it")
    cells = [read_cell(folder) for folder in sorted(_cell_folders(sweep_dir))]
    groups = group_cells(cells)
    summary = Summary(sweep_dir=sweep_dir, cells=cells, groups=groups, best=best_groups(groups))
    write_json(sweep_dir / "summary.json", _as_json(summary))
    write_text(sweep_dir / "summary.csv", _as_csv(summary))
    write_text(sweep_dir / "summary.md", _as_markdown(summary))
    return summary


def read_cell(path: Path) -> Cell:
    """One cell; a damaged file in it makes the cell `unreadable` and spares the others."""
    try:
        status, result = read_status_and_result(path)
        overrides = read_overrides(path)
    except ArtifactError as error:
        return Cell(path=path, overrides=[], state="unreadable", error=str(error).splitlines()[0], metrics={})
    state = str(status.get("state") or ("done" if result else "running"))
    values = {name: number(value) for name, value in result.items() if name != "seed"}
    return Cell(
        path=path,
        overrides=overrides,
        state=state,
        error=error_line(status.get("error")) if state == "failed" else "",
        metrics={name: value for name, value in values.items() if value is not None} if state == "done" else {},
    )


def group_cells(cells: Sequence[Cell]) -> list[Group]:
    """Groups in the order of their settings; a group without a finished cell is left to the failures."""
    by_settings: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.state == "done":
            by_settings.setdefault(cell.settings, []).append(cell)
    shared = set.intersection(*map(set, by_settings)) if len(by_settings) > 1 else set()
    groups = []
    for settings in sorted(by_settings, key=_natural):
        members = by_settings[settings]
        names = dict.fromkeys(name for cell in members for name in cell.metrics)
        label = " ".join(override for override in settings if override not in shared)
        groups.append(
            Group(
                settings=settings,
                label=label or " ".join(settings) or "(defaults)",
                seeds=[cell.seed for cell in members],
                n=len(members),
                metrics={
                    name: bootstrap_mean_interval([c.metrics[name] for c in members if name in c.metrics])
                    for name in names
                },
            )
        )
    return groups


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


def _cell_folders(path: Path) -> list[Path]:
    marks = (*RUN_MARKS, "overrides.json")
    if not path.is_dir():
        return []
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return [folder for folder in folders if any((folder / mark).is_file() for mark in marks)]


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _natural(settings: tuple[str, ...]) -> list[tuple[str, float, str]]:
    """Sort key: by name, then by value as a number where it is one, so that 0.5 stands before 10."""
    parts = []
    for override in settings:
        key, _, value = override.partition("=")
        try:
            parts.append((key, float(value), ""))
        except ValueError:
            parts.append((key, float("inf"), value))
    return parts


def _interval_text(interval: Interval, name: str) -> str:
    kind = METRICS[name].kind if name in METRICS else Kind.plain
    text = format_value(interval.mean, kind)
    if interval.low is None or interval.high is None:
        return text
    if kind is Kind.share:
        return f"{text} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{text} [{format_value(interval.low, kind)}, {format_value(interval.high, kind)}]"


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "cells": len(summary.cells),
        "done": summary.done,
        "failed": summary.failed,
        "unfinished": summary.unfinished,
        "interval": "bootstrap percentile of the mean over seeds, 95 %; null where one seed allows none",
        "best": {name: list(group.settings) for name, group in summary.best.items()},
        "groups": [
            {
                "settings": list(group.settings),
                "seeds": group.seeds,
                "n": group.n,
                "metrics": {name: interval._asdict() for name, interval in group.metrics.items()},
            }
            for group in summary.groups
        ],
        "runs": [
            {
                "cell": cell.path.name,
                "overrides": cell.overrides,
                "state": cell.state,
                "error": cell.error or None,
                "metrics": cell.metrics,
            }
            for cell in summary.cells
        ],
    }


def _as_csv(summary: Summary) -> str:
    """A column per overridden key, so that a spreadsheet can pivot; then n and three columns per metric."""
    keys = list(dict.fromkeys(_key(override) for group in summary.groups for override in group.settings))
    names = list(dict.fromkeys(name for group in summary.groups for name in group.metrics))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*keys, "n", *(f"{name}{end}" for name in names for end in ("", ".low", ".high"))])
    for group in summary.groups:
        values = {_key(override): override.partition("=")[2] for override in group.settings}
        row: list[object] = [values.get(key, "") for key in keys]
        row.append(group.n)
        for name in names:
            interval = group.metrics.get(name)
            numbers = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
            row += ["" if value is None else repr(value) for value in numbers]
        writer.writerow(row)
    return buffer.getvalue()


def _as_markdown(summary: Summary) -> str:
    names = summary.main_metrics()
    lines = [f"# Sweep {summary.sweep_dir.resolve().name}", "", f"{summary.counts}.", ""]
    if summary.groups:
        lines += ["Mean and bootstrap 95 % interval over n seeds; best of its column in bold.", ""]
        lines.append(_markdown_row(["settings", "n", *(summary.heading(name) for name in names)]))
        lines.append("|---|" + "---:|" * (len(names) + 1))
        for group in summary.groups:
            best = summary.best_for(group)
            cells = [_markdown_text(summary.cell_text(group, name)) for name in names]
            cells = [f"**{cell}**" if name in best else cell for name, cell in zip(names, cells, strict=True)]
            lines.append(_markdown_row([_markdown_text(group.label), str(group.n), *cells], escaped=True))
        lines.append("")
    if summary.best:
        lines += ["## Best", ""]
        for name, group in summary.best.items():
            lines.append(f"- {summary.heading(name)}: {summary.cell_text(group, name)}, n = {group.n}: `{group.label}`")
        lines.append("")
    if summary.failures:
        lines += ["## Failures", ""]
        lines += [f"- `{cell.path.name}` `{' '.join(cell.overrides)}`: {cell.error}" for cell in summary.failures]
        lines.append("")
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str], *, escaped: bool = False) -> str:
    return "| " + " | ".join(cell if escaped else _markdown_text(cell) for cell in cells) + " |"


def _markdown_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
