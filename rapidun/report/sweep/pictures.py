"""The plots of a comparison as PNG files for a paper, drawn without a browser: front, criteria, heat map, curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import write_atomic
from rapidun.report import metrics
from rapidun.report.metrics import Kind, format_value, heading_of, kind_of
from rapidun.report.read import read_run, series
from rapidun.report.sweep.cells import Cell, natural_value, swept_keys
from rapidun.report.sweep.data import DEFAULT
from rapidun.report.sweep.ranking import pareto_groups
from rapidun.report.sweep.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED = "#211f1c", "#6d6860"
COLOURS = ("#0a7562", "#c4610c", "#2671b0", "#a8327d", "#7a6a00", "#555555", "#5b3fa8", "#b93a32")
MAX_BARS = 40
DPI = 200


def write_pictures(summary: Summary, folder: Path) -> list[Path]:
    """Write pareto.png, criteria.png, heat_<metric>.png and curves_<name>.png, as far as there is something to draw.

    Returns: the files written.
    """
    written = []
    drawings: list[tuple[str, Callable[[Summary], Figure | None]]] = [("pareto", pareto), ("criteria", criteria)]
    drawings += [(f"heat_{name}", partial(heat, name=name)) for name in metrics.criteria()]
    drawings += [(f"curves_{name}", partial(curves, name=name)) for name in ("loss", "retain_term", "val_loss_clean")]
    for name, draw in drawings:
        figure = draw(summary)
        if figure is not None:
            path = folder / f"{name}.png"
            write_atomic(path, lambda part, figure=figure: figure.savefig(part, format="png", dpi=DPI))  # type: ignore[misc]
            written.append(path)
    return written


def pareto(summary: Summary) -> Figure | None:
    """ASR over clean perplexity with bars for the 95 % intervals; the front's settings are numbered in a legend."""
    names = list(summary.pareto_metrics)[:2]
    if len(names) < 2 or not summary.groups:
        return None
    front = pareto_groups(summary.candidates, {name: summary.pareto_metrics[name] for name in names})
    front.sort(key=lambda group: group.metrics[names[0]].mean)
    height = 3.4 + 0.17 * min(len(front), 12)
    figure, axes = _figure(6.0, height, bottom=(height - 3.0) / height)
    for group in summary.groups:
        if any(name not in group.metrics for name in names):
            continue  # outside the budget, where metrics may be missing that all within it have
        x, y = (group.metrics[name] for name in names)
        spans = [
            None if one.low is None or one.high is None else [[one.mean - one.low], [one.high - one.mean]]
            for one in (x, y)
        ]
        on_front = any(group is one for one in front)
        axes.errorbar(
            x.mean, y.mean, xerr=spans[0], yerr=spans[1], fmt="o", markersize=6 if on_front else 4, linewidth=0.7,
            color=COLOURS[0] if on_front else MUTED, alpha=1 if on_front else 0.6 if group.eligible else 0.25,
        )  # fmt: skip
    way = "steps-post" if summary.pareto_metrics[names[0]] < 0 else "steps-pre"
    points = [[group.metrics[name].mean for group in front] for name in names]
    axes.plot(*points, color=COLOURS[0], linewidth=1, linestyle=":", drawstyle=way)
    for number, group in enumerate(front[:12], start=1):
        place = (group.metrics[names[0]].mean, group.metrics[names[1]].mean)
        axes.annotate(str(number), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        figure.text(0.03, (height - 3.5 - 0.17 * number) / height, f"{number}  {_plain(group.label)}", fontsize=7.5)
    _name(axes, *names)
    return figure


def criteria(summary: Summary) -> Figure | None:
    """One panel per criterion: the mean of each setting with its 95 % interval."""
    names = [name for name in metrics.criteria() if any(name in group.metrics for group in summary.groups)]
    groups = summary.groups[:MAX_BARS]
    if not names or not groups:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 1.9 * len(names), 0.9 + 0.24 * len(groups)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
        for place, group in enumerate(groups):
            found = group.metrics.get(name)
            if found is None:
                continue
            best = name in summary.best_for(group)
            colour, alpha = COLOURS[1] if best else COLOURS[0], 1 if group.eligible else 0.25
            axes.plot(found.mean, place, "o", markersize=4.5, color=colour, alpha=alpha)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1, alpha=alpha)
        axes.set_title(heading_of(name), fontsize=9)
        axes.grid(axis="x", linewidth=0.4)
        axes.tick_params(labelsize=7.5, length=2)
        if kind_of(name) is Kind.share:
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    panels[0].set_yticks(range(len(groups)), [_plain(group.label) for group in groups])
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    return figure


def heat(summary: Summary, name: str) -> Figure | None:
    """Mean of a metric over the two swept settings with the most values; None with fewer than two swept settings."""
    cells = [cell for cell in summary.cells if name in cell.metrics]
    keys = swept_keys(cells)
    values = {key: _values(cells, key) for key in keys}
    chosen = sorted(keys, key=lambda key: -len(values[key]))[:2]
    if len(chosen) < 2:
        return None
    import numpy as np

    across, down = chosen
    table = np.full((len(values[down]), len(values[across])), np.nan)
    for row, b in enumerate(values[down]):
        for column, a in enumerate(values[across]):
            found = [
                cell.metrics[name] for cell in cells if _value(cell, across) == a and _value(cell, down) == b
            ]  # fmt: skip
            if found:
                table[row, column] = sum(found) / len(found)
    figure, axes = _figure(1.8 + 0.8 * table.shape[1], 1.3 + 0.4 * table.shape[0], layout="constrained")
    axes.imshow(table, cmap="YlGnBu", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if value > middle else INK
            axes.text(
                column,
                row,
                format_value(float(value), kind_of(name)),
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
            )
    axes.set_xticks(range(table.shape[1]), [_plain(value) for value in values[across]])
    axes.set_yticks(range(table.shape[0]), [_plain(value) for value in values[down]])
    axes.set_xlabel(_plain(across), fontsize=9)
    axes.set_ylabel(_plain(down), fontsize=9)
    axes.set_title(heading_of(name), fontsize=9)
    return figure


def curves(summary: Summary, name: str) -> Figure | None:
    """Mean unlearning curve for each value of the swept objective (else of the first swept setting), with its range."""
    cells = [cell for cell in summary.cells if cell.state == "done"]
    keys = swept_keys(cells)
    by = next((key for key in keys if key in ("unlearning", "unlearning.objective")), keys[0] if keys else None)
    lines: dict[str, dict[float, list[float]]] = {}
    for cell in cells:
        try:
            points = series(read_run(cell.path).logged, "unlearning").get(name, [])
        except ArtifactError:
            continue  # summary.md names the damaged file
        own = lines.setdefault(_value(cell, by) if by else "all runs", {}) if points else {}
        for step, value in points:
            own.setdefault(step, []).append(value)
    if not lines:
        return None
    figure, axes = _figure(5.4, 3.2, layout="constrained")
    for number, name_of_line in enumerate(sorted(lines, key=natural_value)):
        steps = lines[name_of_line]
        xs, colour = sorted(steps), COLOURS[number % len(COLOURS)]
        means = [sum(steps[x]) / len(steps[x]) for x in xs]
        axes.plot(xs, means, color=colour, linewidth=1.4, label=_plain(f"{by}={name_of_line}" if by else name_of_line))
        axes.fill_between(xs, [min(steps[x]) for x in xs], [max(steps[x]) for x in xs], color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("optimiser step", fontsize=9)
    axes.set_ylabel(_plain(name), fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _values(cells: Sequence[Cell], key: str) -> list[str]:
    return sorted({_value(cell, key) for cell in cells}, key=natural_value)


def _value(cell: Cell, key: str) -> str:
    return cell.values.get(key, DEFAULT)


def _figure(width: float, height: float, *, bottom: float | None = None, layout: Any = None) -> tuple[Figure, Axes]:
    """A figure without pyplot: no global state, no display. Sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots()
    if bottom is not None:
        figure.subplots_adjust(left=0.13, right=0.97, top=0.96, bottom=bottom)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, length=2.5)
    return figure, axes


def _name(axes: Axes, x: str, y: str) -> None:
    for name, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        axis.set_label_text(heading_of(name), fontsize=9)
        if kind_of(name) is Kind.share:
            axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _plain(text: str) -> str:
    """Between two dollar signs matplotlib would read mathematics."""
    return text.replace("$", r"\$")
