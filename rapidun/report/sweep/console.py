"""A sweep's summary on the screen: the settings, the methods' best, and what must be known of the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapidun.report import metrics
from rapidun.report.sweep.groups import SAME, Group
from rapidun.report.sweep.summary import Summary
from rapidun.report.sweep.trials import excess_text, fewest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show(console: Console, summary: Summary) -> None:
    """Print the tables, the budget and the warnings."""
    console.print(settings_table(summary))
    if summary.shows_methods:
        console.print(methods_table(summary))
    if summary.budget is not None:
        console.print(f"{summary.budget_text}.", soft_wrap=True)
    for warning in summary.warnings:
        console.print(f"warning: {warning}.", style="yellow", soft_wrap=True)


def settings_table(summary: Summary) -> Table:
    """The groups as a rich table, the best of each criterion in bold; those outside the budget dimmed and marked."""
    from rich.text import Text

    table = _table(summary.counts)
    table.caption = "Mean and 95 % interval over seeds. * best"
    if summary.budget is not None:
        table.caption += " within the budget\nx outside the budget, ? unknown"
    if any(len(group.names) > 1 for group in summary.groups):
        table.caption += f"\n{SAME.strip()} names of one result"
    table.add_column("settings", overflow="fold", min_width=24)
    table.add_column("n", justify="right")
    names = _names(summary)
    for name in names:
        table.add_column(summary.heading(name), justify="right", no_wrap=True)
    for group in summary.groups:
        best = summary.best_for(group)
        # the interval on a line of its own keeps the table within 80 columns
        cells = [
            Text(
                summary.cell_text(group, name).replace(" [", (" *" if name in best else "") + "\n["),
                style="bold" if name in best else "",
            )
            for name in names
        ]
        label = Text(_mark(group) + _lines(group.label))
        table.add_row(label, str(group.n), *cells, style="" if group.eligible else "dim")
    return table


def methods_table(summary: Summary) -> Table:
    """Each method's best within the budget."""
    from rich.text import Text

    several = summary.unequal_trials
    bound = "within the budget" if summary.budget is not None else "(no sweep.budget is set)"
    table = _table(f"Best of each method {bound}")
    table.caption = f"By {summary.heading(summary.methods[0].criterion)}. A trial is a setting, whatever its seeds"
    if several:
        table.caption += f"; compare methods by the expected best of {fewest(summary.methods)}"
    table.add_column("method", overflow="fold", min_width=min(20, max(len(one.name) for one in summary.methods)))
    table.add_column("trials", overflow="fold", min_width=10)
    table.add_column("best", overflow="fold", min_width=16)
    names = _names(summary)[:2]
    for name in names:
        table.add_column(summary.heading(name), justify="right", no_wrap=True)
    if several:
        table.add_column(f"expected best of {fewest(summary.methods)}", justify="right")
    for one in summary.methods:
        row = [one.name.replace(" ", "\n"), f"{one.num_trials}: {one.counts}".replace(", ", ",\n")]
        if one.best is None:
            near = f"none; nearest misses it by {excess_text(one.nearest)}" if one.nearest else "none"
            row += [near, *("" for _ in names)]
        else:
            row.append(_lines(one.best.label))
            row += [summary.cell_text(one.best, name).replace(" [", "\n[") for name in names]
        table.add_row(*map(Text, row), *([Text(one.expected_text)] if several else []))
    return table


def _lines(label: str) -> str:
    """A label with a line for each of its overrides."""
    return label.replace(" ", "\n").replace(f"\n{SAME.strip()}\n", f"\n{SAME.strip()} ")


def _mark(group: Group) -> str:
    if group.verdict is None:
        return ""
    return {"within": "", "outside": "x ", "unknown": "? "}[group.verdict.place.value]


def _names(summary: Summary) -> list[str]:
    judged, shown = metrics.criteria(), summary.main_metrics()
    return [name for name in shown if name in judged] or shown[:4]


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
                 caption_justify="left")  # fmt: skip
