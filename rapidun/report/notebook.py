"""What a notebook shows of a run and of a sweep: HTML without scripts, which follows the notebook's colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from rapidun.base.errors import ArtifactError
from rapidun.report import metrics
from rapidun.report.metrics import line_words
from rapidun.report.read import RunRecord, read_run, series
from rapidun.report.sweep.summary import Summary
from rapidun.report.tables import before_after_rows

# rows of a leaderboard; runs.csv and to_frame() have all
MOST_ROWS = 30
CELL = "padding:2px 10px;text-align:{side};white-space:nowrap"


def run_html(path: Path) -> str:
    """The table before and after, and the loss of what was trained; where a file is damaged, which."""
    try:
        run = read_run(path)
        return _run(run)
    except ArtifactError as error:
        return f"<p>{escape(str(error))}</p>"


def _run(run: RunRecord) -> str:
    rows = before_after_rows(run.before, run.after, chosen=str(run.detectors.get("detector") or ""))
    parts = [f"<p><b>{escape(str(run.name))}</b> <code>{escape(str(run.path))}</code></p>"]
    if rows:
        lines, group = [], None
        for row in rows:
            if row.metric.group != group:
                group = row.metric.group
                lines.append(f'<tr><th colspan="5" style="{CELL.format(side="left")}">{escape(group)}</th></tr>')
            texts = [row.before_text, row.after_text, row.change_text, row.interval_text]
            lines.append(_line(row.metric.label, texts))
        head = _line("", ["before", "after", "change", "95 % interval"], tag="th")
        parts.append(f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>")
    else:
        parts.append("<p>Not evaluated.</p>")
    parts += _curves(run)
    return "".join(parts)


def _curves(run: RunRecord) -> list[str]:
    """One plot of losses for each stage that trained."""
    found = []
    for stage in ("poison", "unlearning"):
        lines = {
            line_words(name): points
            for name, points in series(run.logged, stage).items()
            if name in ("loss", "forget_term", "retain_term", "val_loss_clean") and points
        }
        if lines:
            # brings matplotlib
            from rapidun.report.run.plots import curves

            found.append(f"<p>{escape(stage)}: loss</p>{curves(lines, title=f'{stage}: loss')}")
    return found


def sweep_html(summary: Summary) -> str:
    """The leaderboard: a row for each setting with means and intervals over its seeds, the best of each metric bold."""
    judged, shown = metrics.criteria(), summary.main_metrics()
    names = [name for name in shown if name in judged] or shown[:4]
    head = _line("setting", ["n", *map(summary.heading, names)], tag="th")
    lines = []
    for group in summary.groups[:MOST_ROWS]:
        best = summary.best_for(group)
        texts = [str(group.n), *(summary.cell_text(group, name) for name in names)]
        marked = [False, *(name in best for name in names)]
        lines.append(_line(group.label or "(one setting)", texts, bold=marked))
    more = len(summary.groups) - MOST_ROWS
    notes = [f"{more} more settings: to_frame() has all." if more > 0 else "", summary.budget_text]
    notes += [f"{cell.path.name}: {cell.state}: {cell.error}" for cell in summary.failures[:5]]
    notes += summary.warnings
    return (
        f"<p><b>{escape(summary.name)}</b>: {escape(summary.counts)} <code>{escape(str(summary.sweep_dir))}</code></p>"
        f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
        f"{''.join(f'<p>{escape(note)}</p>' for note in notes if note)}"
    )


def _line(name: str, texts: Iterable[str], *, tag: str = "td", bold: Sequence[bool] = ()) -> str:
    cells = [f'<{tag} style="{CELL.format(side="left")}">{escape(name)}</{tag}>']
    for number, text in enumerate(texts):
        shown = escape(text)
        if number < len(bold) and bold[number]:
            shown = f"<b>{shown}</b>"
        cells.append(f'<{tag} style="{CELL.format(side="right")}">{shown}</{tag}>')
    return f"<tr>{''.join(cells)}</tr>"
