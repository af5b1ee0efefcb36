"""The run folders of a sweep, as they are read; groups.py folds them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json
from rapidun.base.nested import at, leaves
from rapidun.base.redact import hide_entries
from rapidun.config.budget import Verdict
from rapidun.config.run import BOOKKEEPING
from rapidun.report.read import (
    RUN_MARKS,
    error_line,
    number,
    read_object,
    read_overrides,
    read_settings,
    read_status_and_result,
    read_typed,
)
from rapidun.report.sweep.identity import Lineage, Made

# folders inside a sweep folder that are no cells: what workers read, and the run folders of shared stages
NOT_CELLS = ("jobs", "stages")
# a folder of a planned cell that is not there
NOT_STARTED = "not started"
FAILED = ("failed", "unreadable")
# the first words of overrides that change no number
NOT_RESULTS = (*BOOKKEEPING, "hydra")
# of what was typed for a single run, what does not name it; its seed does
NOT_TYPED = (*BOOKKEEPING, "stages")
# settings by which runs made one by one are not told apart
NOT_COMPARED = (*NOT_TYPED, "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run folder of the sweep."""

    path: Path
    overrides: list[str]
    state: str  # done | failed | running | interrupted | pruned | unreadable | not started
    error: str
    metrics: dict[str, float]
    # what made the weights (mapping.method), empty where it is not recorded
    method: str = ""
    # the null hypothesis that these weights were exchanged for (mapping.null)
    null: str = "none"
    # seed of the result, where the overrides name none
    default_seed: str = ""
    stage: str = ""
    # unlearning.objective and evaluation.split, empty where they are not recorded
    objective: str = ""
    split: str = ""
    # the run's detector, empty where there is none
    detector: str = ""
    # where a finished cell stands within the sweep's budget; None = there is none, or it is not finished
    verdict: Verdict | None = None
    # what a finished cell computed; None where the store no longer tells
    made: Made | None = None
    # the group that it belongs to, see groups.py
    group: str = ""

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides by which results may differ, without the seed, sorted."""
        return tuple(sorted(text for text in self.overrides if key_of(text) != "seed" and not _is_bookkeeping(text)))

    @property
    def values(self) -> dict[str, str]:
        """The overrides without the seed as key -> value."""
        return {key_of(override): override.partition("=")[2] for override in self.settings}

    @property
    def seed(self) -> str:
        named = next((o.split("=", 1)[1] for o in self.overrides if key_of(o) == "seed" and "=" in o), "")
        return named or self.default_seed


def cell_folders(path: Path) -> list[Path]:
    """The cells' folders of a sweep folder, in no order; jobs/ and stages/ are none."""
    marks = (*RUN_MARKS, "overrides.json")
    if not path.is_dir():
        return []
    folders = [
        folder
        for folder in path.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in NOT_CELLS
    ]
    return [folder for folder in folders if any((folder / mark).is_file() for mark in marks)]


def read_cells(sweep_dir: Path) -> list[Cell]:
    """Every cell of a sweep folder by name, and those that sweep.json plans but nobody has started.

    Raises: ArtifactError if sweep.json is damaged.
    """
    lineage = Lineage()
    cells = [read_cell(folder, lineage) for folder in sorted(cell_folders(sweep_dir))]
    found = {cell.path.name for cell in cells}
    plan = read_json(sweep_dir / "sweep.json") if (sweep_dir / "sweep.json").is_file() else {}
    planned = plan.get("cells") if isinstance(plan, dict) else None
    for entry in planned if isinstance(planned, list) else []:
        name = str(entry.get("hash", "")) if isinstance(entry, dict) else ""
        if name and name not in found:
            typed = entry.get("overrides")
            overrides = [hide_entries(str(override)) for override in (typed if isinstance(typed, list) else [])]
            cells.append(Cell(path=sweep_dir / name, overrides=overrides, state=NOT_STARTED, error="", metrics={}))
    return cells


def read_cell(path: Path, lineage: Lineage | None = None) -> Cell:
    """One cell; a damaged file in it makes the cell `unreadable` and spares the others.

    Args: lineage: of the cells before, which share artifacts with it.
    """
    try:
        status, result = read_status_and_result(path)
        overrides = read_overrides(path)
        settings = read_settings(path)
        detectors = read_object(path / "evaluation" / "detectors.json")
    except ArtifactError as error:
        return Cell(path=path, overrides=[], state="unreadable", error=str(error).split("\n")[0], metrics={})
    state = str(status.get("state") or ("done" if result else "running"))
    values = {name: number(value) for name, value in result.items() if name != "seed"}
    mapping = settings.get("mapping")
    objective, split = at(settings, "unlearning.objective"), at(settings, "evaluation.split")
    seed = result.get("seed", settings.get("seed"))
    return Cell(
        path=path,
        overrides=overrides,
        state=state,
        error=error_line(status.get("error")) if state == "failed" else "",
        metrics={name: value for name, value in values.items() if value is not None} if state == "done" else {},
        method=str(mapping.get("method") or "") if isinstance(mapping, dict) else "",
        null=str(mapping.get("null") or "none") if isinstance(mapping, dict) else "none",
        default_seed="" if seed is None else str(seed),
        stage=str(status.get("stage") or ""),
        objective=str(objective or ""),
        split=str(split or ""),
        detector=str(detectors.get("detector") or ""),
        made=(lineage or Lineage()).of_run(path, status) if state == "done" else None,
    )


def with_differing_settings(cells: Sequence[Cell]) -> list[Cell]:
    """Runs made one by one get as overrides the settings in which they differ; those of a sweep stay as they are.

    Beside a sweep they get what was typed for them: the sweep's cells are named by such overrides too.
    """
    alone = [cell for cell in cells if not cell.overrides]
    if len(alone) < len(cells):
        typed = {
            cell.path: [text for text in read_typed(cell.path) if key_of(text).split(".")[0] not in NOT_TYPED]
            for cell in alone
        }
        return [replace(cell, overrides=typed.get(cell.path, cell.overrides)) for cell in cells]
    flat = [flatten(read_settings(cell.path)) if cell.state != "unreadable" else {} for cell in alone]
    keys = sorted({key for settings in flat for key in settings if key.split(".")[0] not in NOT_COMPARED})
    differing = [key for key in keys if len({str(settings.get(key)) for settings in flat}) > 1]
    named = {
        cell.path: [f"{key}={plain_value(settings.get(key))}" for key in differing]
        for cell, settings in zip(alone, flat, strict=True)
    }
    return [replace(cell, overrides=named.get(cell.path, cell.overrides)) for cell in cells]


def _is_bookkeeping(override: str) -> bool:
    """Whether an override changes no number: launcher, resources, paths, names."""
    return re.split(r"[./]", key_of(override))[0] in NOT_RESULTS


def key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def swept_keys(cells: Sequence[Cell], *, seed: bool = False) -> list[str]:
    """Overridden keys in which readable cells differ, in the order of their first appearance; the seed if asked for."""
    # in the order in which they were typed
    rows = [
        {key_of(text): text.partition("=")[2] for text in cell.overrides if not _is_bookkeeping(text)}
        for cell in cells
        if cell.state != "unreadable"
    ]
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if len({row.get(key) for row in rows}) > 1 and (seed or key != "seed")]


def natural(settings: Iterable[str]) -> list[tuple[str, float, str]]:
    """Sort key: by name, then by value as a number where it is one, so that 0.5 stands before 10."""
    parts = []
    for override in settings:
        key, _, value = override.partition("=")
        parts.append((key, *natural_value(value)))
    return parts


def natural_value(value: str) -> tuple[float, str]:
    try:
        return (float(value), "") if not math.isnan(float(value)) else (math.inf, value)
    except ValueError:
        return (math.inf, value)


def flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as dotted keys; lists stay values, what has no entries is left out."""
    return {key: value for key, value in leaves(settings) if value != {}}


def plain_value(value: Any) -> str:
    """A setting as one would type it: null, true, 0.5, [a,b]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(plain_value, value))}]"
    return str(value)
