"""Whether a sweep's tables follow from its runs, and these from what is stored."""

import json
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError, RapidunError
from rapidun.pipeline.evidence.ledger import Ledger
from rapidun.pipeline.evidence.run import verify_run
from rapidun.report.read import read_object
from rapidun.report.sweep.budget import NO_BUDGET
from rapidun.report.sweep.exports import as_csv, as_json, as_markdown, read_sweep
from rapidun.report.sweep.runs import as_runs_csv

TABLES = {"runs.csv": as_runs_csv, "summary.csv": as_csv, "summary.md": as_markdown}


def verify_sweep(path: Path, ledger: Ledger) -> None:
    """Check every finished cell, and that runs.csv and summary.json, .csv and .md are what the cells' results give.

    Raises: DataError where there are no cells.
    """
    summary_file = path / "summary.json"
    written: dict[str, Any] | None = None
    try:
        written = read_object(summary_file)
    except ArtifactError as error:
        ledger.fault(str(error))
    budget = written.get("budget") if written else None
    expression = budget.get("expression") if isinstance(budget, dict) else None
    try:
        summary = read_sweep(path, budget=str(expression) if expression else NO_BUDGET)
    except RapidunError as error:
        ledger.fault(str(error))
        return
    others: dict[str, int] = {}
    for cell in summary.cells:
        if cell.state == "done":
            verify_run(cell.path, ledger)
        elif cell.state == "unreadable":
            ledger.fault(f"{cell.path}: need a readable cell: {cell.error}")
        else:
            others[cell.state] = others.get(cell.state, 0) + 1
    if others:
        shown = ", ".join(f"{number} {state}" for state, number in others.items())
        ledger.notes[f"{path}: {shown}: the tables say so, there is nothing to check"] = None
    if written is None:
        return
    if not written:
        ledger.fault(f"{summary_file}: need the tables of a sweep, found none. Run: rapidun report {path}")
        return
    name = path.resolve().name
    if json.loads(json.dumps(as_json(summary))) == written:
        ledger.file(f"{name}/{summary_file.name}", summary_file)
    else:
        ledger.fault(f"{summary_file}: need what follows from the cells' results, got something else")
    for file, make in TABLES.items():
        if not (path / file).is_file():
            ledger.fault(f"{path / file}: need this table, found none. Run: rapidun report {path}")
        elif (path / file).read_bytes() != make(summary).encode():
            ledger.fault(f"{path / file}: need what follows from the cells' results, got something else")
        else:
            ledger.file(f"{name}/{file}", path / file)
