"""A summary as JSON, CSV and Markdown: for programs, spreadsheets and papers; written into the sweep folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.files import write_json, write_text
from rapidun.report.sweep.budget import chosen_budget, planned_budget
from rapidun.report.sweep.cells import FAILED, Cell, key_of, read_cells
from rapidun.report.sweep.comparisons import method_sentences
from rapidun.report.sweep.groups import Group
from rapidun.report.sweep.runs import as_runs_csv, csv_text
from rapidun.report.sweep.summary import Summary, is_sweep, summarise
from rapidun.report.sweep.trials import Method, excess_text, fewest

INTERVAL = (
    "Mean and 95 % interval over n seeds: Student's t below 10 seeds, the BCa bootstrap from 10 on, none for one seed. "
    "Seeds that change nothing, and a run made twice, count once."
)
MARKS = (
    "All that share the best mean are marked; none where no two settings differ, nor a setting of one seed beside "
    "others of more. Names joined by ≡ are one result."
)
COMPARISONS = (
    "Runs are paired by seed and shared settings; the test is a paired t test over seeds, its p values corrected for "
    "all comparisons together (Holm). Differences are method minus baseline; their intervals are not corrected."
)
TRIALS = (
    "A trial is one setting, whatever its seeds, that has ended. The best is by mean; intervals are over seeds and not "
    "corrected for the choice. Expected best of m: over all choices of m of the method's trials, those with one within."
)


def read_sweep(sweep_dir: Path, *, budget: str | None = None) -> Summary:
    """The summary of a sweep folder; writes nothing.

    Args: budget: see `write_sweep_summary`.
    Raises: ConfigError if it is none over what the cells measured, DataError if the folder holds no run folders.
    """
    if not sweep_dir.is_dir() or not is_sweep(sweep_dir):
        raise DataError(f"{sweep_dir}: need a sweep folder, with a run folder for each cell; found no cells in it")
    cells = read_cells(sweep_dir)
    return summarise(cells, sweep_dir, budget=chosen_budget(cells, budget, planned_budget(sweep_dir)))


def write_sweep_summary(sweep_dir: Path, *, budget: str | None = None) -> Summary:
    """Read every cell of a sweep folder; write runs.csv and summary.csv, .json and .md into it.

    runs.csv: a line for each run with every number. summary.csv: a line for each setting, `<metric>`, `<metric>.low`,
    `<metric>.high` (the 95 % interval) of the main metrics. summary.json: every metric of both, the Pareto set and the
    comparisons of methods. A cell that failed, cannot be read or was never started is listed, not dropped.

    Args: budget: an expression to choose by in place of the sweep's own, `none` for no budget; None = the sweep's.
    Raises: ConfigError if the budget is none over what the cells measured, DataError if the folder holds no runs.
    """
    summary = read_sweep(sweep_dir, budget=budget)
    write_json(sweep_dir / "summary.json", as_json(summary))
    write_text(sweep_dir / "runs.csv", as_runs_csv(summary))
    write_text(sweep_dir / "summary.csv", as_csv(summary))
    write_text(sweep_dir / "summary.md", as_markdown(summary))
    return summary


def as_json(summary: Summary) -> dict[str, Any]:
    return {
        "cells": len(summary.cells),
        "done": summary.done,
        "failed": summary.failed,
        "pruned": summary.pruned,
        "unfinished": summary.unfinished,
        "interval": INTERVAL,
        "budget": _budget_json(summary),
        "warnings": summary.warnings,
        "methods": [_method_json(one, summary) for one in summary.methods],
        "best": {name: [list(group.settings) for group in groups] for name, groups in summary.best.items()},
        "pareto": {
            "metrics": {name: "smaller" if way < 0 else "larger" for name, way in summary.pareto_metrics.items()},
            "groups": [list(group.settings) for group in summary.pareto],
        },
        "groups": [
            {
                "settings": list(group.settings),
                # where one result has several names
                "names": [list(settings) for settings in group.names],
                "seeds": group.seeds,
                "n": group.n,
                "budget": _verdict_json(group),
                "metrics": {name: interval._asdict() for name, interval in group.metrics.items()},
            }
            for group in summary.groups
        ],
        "comparisons": [
            {**asdict(one), "verdict": one.verdict.value, "sentence": one.sentence} for one in summary.comparisons
        ],
        "runs": [
            {
                "cell": cell.path.name,
                "overrides": cell.overrides,
                "seed": cell.seed or None,
                "state": cell.state,
                "error": cell.error or None,
                "budget": _verdict_json(cell),
                "metrics": cell.metrics,
            }
            for cell in summary.cells
        ],
    }


def _budget_json(summary: Summary) -> dict[str, Any] | None:
    if summary.budget is None:
        return None
    cells, settings = summary.places()
    return {"expression": summary.budget.text, "cells": cells, "settings": settings}


def _verdict_json(one: Cell | Group) -> dict[str, Any] | None:
    """`excesses`: above 0 = missed, by that share of the bound; one for each part of the outermost `and`."""
    if one.verdict is None:
        return None
    found: dict[str, Any] = {"place": one.verdict.place.value, "excesses": list(one.verdict.excesses)}
    found |= {"why": one.verdict.why} if one.verdict.why else {}
    return found | ({"seeds_within": one.num_within} if isinstance(one, Group) else {})


def _method_json(one: Method, summary: Summary) -> dict[str, Any]:
    return {
        "method": one.name,
        "trials": {"all": one.num_trials, "within": one.within, "outside": one.outside, "unknown": one.unknown,
                   "failed": one.failed, "pruned": one.pruned},
        "best": None if one.best is None else list(one.best.settings),
        "nearest": None if one.nearest is None else list(one.nearest.settings),
        "criterion": one.criterion or None,
        "expected_best": {"of": fewest(summary.methods), "value": one.expected, "probability_of_none": one.none},
    }  # fmt: skip


def as_csv(summary: Summary) -> str:
    """A line for each setting: what was swept, n, and the main metrics with their intervals. runs.csv has all numbers.

    With a budget, `budget` (within, outside, unknown) and `budget.seeds_within` stand after n.
    """
    keys = _differing(summary.groups)
    names = summary.main_metrics()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    judged = ["budget", "budget.seeds_within"] if summary.budget is not None else []
    writer.writerow(
        [*map(csv_text, keys), "n", *judged, *(f"{name}{end}" for name in names for end in ("", ".low", ".high"))]
    )
    for group in summary.groups:
        row: list[object] = [csv_text(group.value(key)) for key in keys]
        row.append(group.n)
        row += [group.verdict.place.value, group.num_within] if group.verdict is not None else []
        for name in names:
            interval = group.metrics.get(name)
            numbers = (None, None, None) if interval is None else (interval.mean, interval.low, interval.high)
            row += ["" if value is None else repr(value) for value in numbers]
        writer.writerow(row)
    return buffer.getvalue()


def _differing(groups: Sequence[Group]) -> list[str]:
    """The overridden keys by which settings differ; all, where there are no two to tell apart."""
    keys = list(dict.fromkeys(key_of(text) for group in groups for settings in group.names for text in settings))
    return [key for key in keys if len({group.value(key) for group in groups}) > 1] or keys


def as_markdown(summary: Summary) -> str:
    names = summary.main_metrics()
    lines = [f"# Sweep {_markdown_text(summary.name)}", "", f"{summary.counts}.", ""]
    if summary.budget is not None:
        lines += [f"{_markdown_text(summary.budget_text)}.", ""]
    lines += [f"- **Warning**: {_markdown_text(warning)}." for warning in summary.warnings]
    lines += [""] if summary.warnings else []
    if summary.groups:
        among = "" if summary.budget is None else " among the settings within the budget"
        lines += [f"{INTERVAL} Best of its column in bold{among}. {MARKS}", ""]
        column = [] if summary.budget is None else ["budget"]
        lines.append(_markdown_row(["settings", "n", *column, *(summary.heading(name) for name in names)]))
        lines.append("|---|" + "---:|" * (len(names) + 1 + len(column)))
        for group in summary.groups:
            best = summary.best_for(group)
            cells = [_markdown_text(summary.cell_text(group, name)) for name in names]
            cells = [f"**{cell}**" if name in best else cell for name, cell in zip(names, cells, strict=True)]
            stands = [] if group.verdict is None else [group.verdict.place.value]
            lines.append(_markdown_row([_markdown_text(group.label), str(group.n), *stands, *cells], escaped=True))
        lines.append("")
    if summary.shows_methods:
        lines += _markdown_methods(summary)
    if summary.best:
        lines += ["## Best", ""]
        lines += [
            f"- {summary.heading(name)}: {summary.cell_text(group, name)}, n = {group.n}: {_markdown_code(group.label)}"
            for name, groups in summary.best.items()
            for group in groups
        ]
        lines.append("")
    if summary.pareto:
        judged = ", ".join(summary.heading(name) for name in summary.pareto_metrics)
        lines += [
            "## Pareto set",
            "",
            f"No other setting is at least as good on all of {judged} and better on one.",
            "",
        ]
        for group in summary.pareto:
            values = ", ".join(
                f"{summary.heading(name)} {summary.cell_text(group, name)}" for name in summary.pareto_metrics
            )
            lines.append(f"- {_markdown_code(group.label)}: {values}")
        lines.append("")
    if summary.comparisons:
        lines += ["## Methods against uniform and shuffled weights", "", COMPARISONS, ""]
        lines += [f"- {_markdown_text(sentence)}" for sentence in method_sentences(summary.comparisons)]
        lines += ["", "One by one:", ""]
        lines += [f"- {_markdown_text(one.sentence)}" for one in summary.comparisons]
        lines.append("")
    if summary.failures:
        lines += ["## Failures", ""]
        lines += [
            f"- `{cell.path.name}` {_markdown_code(' '.join(cell.overrides))}: {_markdown_text(cell.error)}"
            for cell in summary.failures
        ]
        lines.append("")
    others = [cell for cell in summary.cells if cell.state not in ("done", *FAILED)]
    if others:
        lines += ["## Unfinished", ""]
        lines += [f"- `{cell.path.name}` {_markdown_code(' '.join(cell.overrides))}: {cell.state}" for cell in others]
        lines.append("")
    return "\n".join(lines)


def _markdown_methods(summary: Summary) -> list[str]:
    names = summary.main_metrics()[:6]
    bound = "within the budget" if summary.budget is not None else "(no sweep.budget is set)"
    lines = [f"## Best of each method {bound}", "", TRIALS, ""]
    heading = [
        "method",
        "trials",
        "best",
        "n",
        *map(summary.heading, names),
        f"expected best of {fewest(summary.methods)}",
    ]
    lines += [_markdown_row(heading), "|---|---|---|" + "---:|" * (len(names) + 2)]
    for one in summary.methods:
        row = [one.name, f"{one.num_trials}: {one.counts}"]
        if one.best is None:
            row.append(f"none; nearest misses it by {excess_text(one.nearest)}" if one.nearest else "none")
            row += [""] * (len(names) + 1)
        else:
            row += [one.best.label, str(one.best.n), *(summary.cell_text(one.best, name) for name in names)]
        lines.append(_markdown_row([*row, one.expected_text]))
    return [*lines, ""]


def _markdown_row(cells: Sequence[str], *, escaped: bool = False) -> str:
    return "| " + " | ".join(cell if escaped else _markdown_text(cell) for cell in cells) + " |"


def _markdown_text(text: str) -> str:
    """Text that is nothing but text: no column, emphasis, code, link or HTML of its own."""
    return re.sub(r"([\\|*`<\[])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text)


def _markdown_code(text: str) -> str:
    """Text as code, in more backticks than it holds."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{_one_line(text)}{room}{fence}"
