"""The comparison page, one HTML file with everything in it, and sweep.html, the index of a sweep without scripts."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.files import write_text
from rapidun.report.read import is_run
from rapidun.report.run.page import environment
from rapidun.report.run.tokens import shade_css
from rapidun.report.sweep.answer import answer_of, title_of
from rapidun.report.sweep.budget import chosen_budget, common_budget
from rapidun.report.sweep.cells import Cell, read_cell, read_cells, with_differing_settings
from rapidun.report.sweep.comparisons import SOURCE_KEY, difference_text, method_sentences, p_text
from rapidun.report.sweep.data import PageData, page_data
from rapidun.report.sweep.exports import COMPARISONS, INTERVAL, MARKS, TRIALS
from rapidun.report.sweep.summary import Summary, summarise
from rapidun.report.sweep.trials import excess_text, heading_of_expected

# the page's scripts, in the order in which they need each other
SCRIPTS = ("base.js", "state.js", "rows.js", "leaderboard.js", "charts.js", "pareto.js", "parallel.js", "heat.js",
           "curves.js", "answers.js", "tokens.js", "run.js", "main.js")  # fmt: skip
WEB = Path(__file__).parent / "web"
# bytes of the details; with the drawing library the file stays below 8 MB
MAX_DETAILS = 5_000_000


def gather(paths: Sequence[Path], *, budget: str | None = None) -> Summary:
    """One summary of runs and sweeps together; with several, where a cell comes from becomes a column.

    Args: budget: an expression to choose by, `none` for no budget; None = that of the sweeps, if they share one.
    Raises: ConfigError if the budget is none over what the cells measured, DataError if no path holds a run.
    """
    cells: list[Cell] = []
    seen: set[Path] = set()
    for path in paths:
        found = [read_cell(path)] if is_run(path) else read_cells(path)
        # a run that is named beside its sweep, or twice, is one run
        found = [cell for cell in found if cell.path.resolve() not in seen]
        seen.update(cell.path.resolve() for cell in found)
        if len(paths) > 1 and not is_run(path):
            source = f"{SOURCE_KEY}={path.resolve().name}"
            found = [replace(cell, overrides=[*cell.overrides, source]) for cell in found]
        cells += found
    if not cells:
        raise DataError(f"{', '.join(map(str, paths))}: need run folders or sweep folders, found no run in them")
    if len(paths) > 1:
        cells = with_differing_settings(cells)
    planned, warning = common_budget([path for path in paths if not is_run(path)])
    summary = summarise(cells, paths[0], budget=chosen_budget(cells, budget, planned))
    return replace(summary, warnings=[warning, *summary.warnings]) if warning and budget is None else summary


def write_comparison(summary: Summary, path: Path, *, title: str) -> list[str]:
    """Write the page; where the details of all runs would be too much for one file, it shows less of each.

    Returns: what could not be read, one sentence a fault.
    """
    for shrink in (1, 2, 4, 8, 16):
        data = page_data(summary, base=path.parent, shrink=shrink)
        if data.num_bytes <= MAX_DETAILS:
            break
    write_text(path, page(summary, data, title=title))
    return data.problems


def page(summary: Summary, data: PageData, *, title: str) -> str:
    """The finished page. Only the two scripts whose hashes stand in its policy may run."""
    library = plotly_source()
    heading = title_of(summary, name=title)
    data.index["title"] = f"{heading} · rapidun"
    script = page_script()
    packed = base64.b64encode(gzip.compress(library.encode(), compresslevel=9, mtime=0)).decode()
    return (
        environment()
        .get_template("sweep/web/compare.html.j2")
        .render(
            title=heading,
            said=answer_of(summary),
            summary=summary,
            p_text=p_text,
            difference=difference_text,
            sentences=method_sentences(summary.comparisons),
            comparisons_note=COMPARISONS,
            trials_note=TRIALS,
            excess_text=excess_text,
            expected_heading=heading_of_expected(summary.methods),
            index_keys=data.index["keys"],
            index_metrics=data.index["metrics"],
            index_curves=data.index["curves"],
            hashes=[content_hash(script), content_hash(library)],
            style=(WEB / "compare.css").read_text(encoding="utf-8") + shade_css(),
            script=script,
            index=embedded_json(data.index),
            blocks={**data.blocks, "plotly": packed},
        )
    )


def page_script() -> str:
    parts = [(WEB / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n(() => {\n'use strict';\n" + "\n".join(parts) + "\n})();\n"


def plotly_source() -> str:
    """plotly.min.js as the Python package plotly carries it."""
    spec = importlib.util.find_spec("plotly")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        file = Path(place) / "package_data" / "plotly.min.js"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise DataError(
        "the comparison page needs the package plotly (with package_data/plotly.min.js): pip install plotly"
    )


def content_hash(script: str) -> str:
    """A script's hash as a Content-Security-Policy writes it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def embedded_json(value: Any) -> str:
    """JSON that may stand in a script element: no `<` in it, so nothing can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def write_sweep_index(sweep_dir: Path, summary: Summary, *, comparison: bool = True) -> Path:
    """Write sweep.html into a sweep folder: the summary's tables, and a link to each cell's report.

    With it goes report.html, the comparison page, which holds every run and has tables and plots to work with;
    `comparison=False` leaves that one as it is (a sweep that is still running, again and again).

    Returns: the path of sweep.html.
    """
    if comparison:
        write_comparison(summary, sweep_dir / "report.html", title=summary.name)
    columns = summary.main_metrics()
    attacked = any(name.startswith("asr") for name in columns) or "extraction_strength_forget" not in columns
    page = environment().get_template("sweep/sweep.html.j2").render(
        summary=summary,
        title=title_of(summary),
        said=answer_of(summary),
        judged_by="ASR" if attacked else "extraction strength of the forget rows",
        comparison=(sweep_dir / "report.html").is_file(),
        comparisons_note=COMPARISONS,
        trials_note=TRIALS,
        excess_text=excess_text,
        expected_heading=heading_of_expected(summary.methods),
        sentences=method_sentences(summary.comparisons),
        interval_note=INTERVAL,
        marks_note=MARKS,
        columns=columns,
        reports={
            cell.path.name: f"{cell.path.name}/report.html"
            for cell in summary.cells
            if (cell.path / "report.html").is_file()
        },
    )  # fmt: skip
    path = sweep_dir / "sweep.html"
    write_text(path, page)
    return path
