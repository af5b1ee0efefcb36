"""From a choice on validation rows to the numbers that are reported: the commands that evaluate each best on test."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.base.files import read_json
from rapidun.base.redact import HIDDEN
from rapidun.report.sweep.cells import key_of, natural_value
from rapidun.report.sweep.comparisons import SOURCE_KEY
from rapidun.report.sweep.groups import Group
from rapidun.report.sweep.summary import Summary
from rapidun.report.sweep.trials import Method, excess_text, method_names

# overrides of a cell that say how its sweep ran, or what the new one says anew
NOT_KEPT = ("sweep", "hydra", SOURCE_KEY)
SPLIT = "evaluation.split"


def final_commands(summary: Summary) -> list[str]:
    """One command for each method's best, all into one new sweep folder; lines that begin with # are for the reader.

    The commands repeat the evaluation alone: models and weights are those of the store. A method without a setting
    within the budget has a comment for a command.

    Raises: DataError if the choice was not made on validation rows, or nothing may be chosen.
    """
    splits = {cell.split for cell in summary.cells if cell.state == "done"} - {""}
    if splits - {"val"}:
        raise DataError(
            f"{summary.sweep_dir}: need cells that were evaluated on validation rows, got {SPLIT}="
            f"{', '.join(sorted(splits))}: what is chosen on the rows that are reported flatters the best. Run the "
            f"sweep's command again with {SPLIT}=val; all but the evaluation is kept"
        )
    if not any(one.best for one in summary.methods):
        bound = f" within the budget {summary.budget.text!r}" if summary.budget is not None else ""
        raise DataError(f"{summary.sweep_dir}: need a finished setting{bound} to choose, found none")
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', summary.name)}-test"
    bound = "no budget" if summary.budget is None else f"the budget {summary.budget.text}"
    lines = [
        f"# each method's best on validation rows ({bound}), evaluated on test; append hydra/launcher=... as needed"
    ]
    if not splits:
        lines.append(
            f"# warning: the cells do not say their {SPLIT}; what is chosen on test is not to be reported on it"
        )
    lines += [f"# warning: {text}" for text in summary.warnings if SPLIT not in text]
    lines += _directory(summary.sweep_dir)
    for one in summary.methods:
        if one.best is None:
            near = f"; the nearest misses it by {excess_text(one.nearest)}" if one.nearest is not None else ""
            lines.append(f"# {one.name}: none of {one.num_trials} trials may be chosen{near}")
            continue
        lines.append(f"# {one.name}: best of {one.num_trials} trials, {one.criterion} {_value(summary, one.best)}")
        lines += _command(summary, one, one.best, name)
    return [*lines, f"# then: rapidun report outputs/sweeps/{name}"]


def _command(summary: Summary, method: Method, group: Group, name: str) -> list[str]:
    names = method_names(summary.cells)
    # of a result with several names the method's own
    cell = next(
        cell
        for cell in summary.cells
        if cell.state == "done" and cell.group == group.name and names[id(cell)] == method.name
    )
    overrides = [override for override in cell.overrides if _is_kept(override)]
    hidden = [override for override in overrides if HIDDEN in override]
    kept = [override for override in overrides if HIDDEN not in override]
    seeds = sorted(filter(None, group.seeds), key=natural_value)
    kept += [f"seed={','.join(seeds)}"] if seeds else []
    kept += [f"{SPLIT}=test", f"sweep.name={name}"]
    kept += [f"sweep.budget={summary.budget.text}"] if summary.budget is not None else []
    lines = [f"# left out, add it: {key_of(override)}" for override in hidden]
    return [*lines, f"rapidun -m {' '.join(map(shlex.quote, kept))}"]


def _is_kept(override: str) -> bool:
    key = key_of(override)
    return re.split(r"[./]", key)[0] not in NOT_KEPT and key not in ("seed", SPLIT)


def _value(summary: Summary, group: Group) -> str:
    criterion = next((one.criterion for one in summary.methods if one.best is group), "")
    return summary.cell_text(group, criterion)


def _directory(sweep_dir: Path) -> list[str]:
    """Where relative paths in the overrides are meant from, if that is not here."""
    path = sweep_dir / "sweep.json"
    plan = read_json(path) if path.is_file() else {}
    directory = plan.get("directory") if isinstance(plan, dict) else None
    elsewhere = isinstance(directory, str) and os.path.realpath(directory) != os.path.realpath(os.getcwd())
    return [f"# in the directory that the sweep was launched from: {directory}"] if elsewhere else []
