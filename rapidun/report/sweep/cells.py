"""The run folders of a sweep, read and grouped over their seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json
from rapidun.base.nested import at, leaves
from rapidun.base.redact import hide_entries
from rapidun.config.budget import Budget, Place, Verdict
from rapidun.config.run import BOOKKEEPING
from rapidun.report.metrics import Kind, kind_of
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
from rapidun.report.statistics import Interval, mean_interval

# folders inside a sweep folder that are no cells: what workers read, and the run folders of shared stages
NOT_CELLS = ("jobs", "stages")
# a folder of a planned cell that is not there
NOT_STARTED = "not started"
FAILED = ("failed", "unreadable")
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

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides without the seed, sorted: what the cells of one group share."""
        return tuple(sorted(override for override in self.overrides if key_of(override) != "seed"))

    @property
    def values(self) -> dict[str, str]:
        """The overrides without the seed as key -> value."""
        return {key_of(override): override.partition("=")[2] for override in self.settings}

    @property
    def seed(self) -> str:
        named = next((o.split("=", 1)[1] for o in self.overrides if key_of(o) == "seed" and "=" in o), "")
        return named or self.default_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Cells that differ in their seed only; n counts the seeds of the finished ones, metrics are over those."""

    settings: tuple[str, ...]
    # as settings, without what every group of the sweep shares
    label: str
    seeds: list[str]
    n: int
    metrics: dict[str, Interval]
    # of the means over seeds; unknown where one of the cells is
    verdict: Verdict | None = None
    # seeds that are within the budget by themselves
    num_within: int = 0

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen: within the budget, or there is none."""
        return self.verdict is None or self.verdict.place is Place.within


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
    cells = [read_cell(folder) for folder in sorted(cell_folders(sweep_dir))]
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


def read_cell(path: Path) -> Cell:
    """One cell; a damaged file in it makes the cell `unreadable` and spares the others."""
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


def group_cells(cells: Sequence[Cell]) -> list[Group]:
    """Groups in the order of their settings; a group without a finished cell is left to the failures."""
    by_settings: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.state == "done":
            by_settings.setdefault(cell.settings, []).append(cell)
    shared = set.intersection(*map(set, by_settings)) if len(by_settings) > 1 else set()
    groups = []
    for settings in sorted(by_settings, key=natural):
        members = by_settings[settings]
        names = dict.fromkeys(name for cell in members for name in cell.metrics)
        seeds = by_seed(members)
        label = " ".join(override for override in settings if override not in shared)
        groups.append(
            Group(
                settings=settings,
                label=label or " ".join(settings) or "(defaults)",
                seeds=[same[0].seed for same in seeds],
                n=len(seeds),
                metrics={name: fold(name, seed_means(name, seeds)) for name in names},
            )
        )
    return groups


def judged_cells(cells: Sequence[Cell], budget: Budget) -> list[Cell]:
    """The cells, the finished ones with their verdict."""
    return [replace(one, verdict=budget.judge(one.metrics)) if one.state == "done" else one for one in cells]


def judged_groups(groups: Sequence[Group], cells: Sequence[Cell], budget: Budget) -> list[Group]:
    """The groups with their verdict. Args: cells: as `judged_cells` gives them.

    A group is judged by its means over seeds, which do not depend on how many there are. Where a cell of it is unknown,
    so is the group: the mean of the others would leave it out without a word.
    """
    members: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.verdict is not None:
            members.setdefault(cell.settings, []).append(cell)
    found = []
    for group in groups:
        own = members[group.settings]
        unknown = next((cell.verdict for cell in own if cell.verdict and cell.verdict.place is Place.unknown), None)
        means = {name: interval.mean for name, interval in group.metrics.items()}
        within = [all(one.verdict and one.verdict.place is Place.within for one in same) for same in by_seed(own)]
        found.append(replace(group, verdict=unknown or budget.judge(means), num_within=sum(within)))
    return found


def by_seed(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The runs of each seed together: a repeated one is no further sample. Runs of unknown seed stand alone."""
    found: dict[str, list[Cell]] = {}
    for place, cell in enumerate(cells):
        found.setdefault(cell.seed or f"unknown {place}", []).append(cell)
    return list(found.values())


def seed_means(name: str, seeds: Sequence[Sequence[Cell]]) -> list[float]:
    values = [[cell.metrics[name] for cell in same if name in cell.metrics] for same in seeds]
    return [sum(same) / len(same) for same in values if same]


def fold(name: str, values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of one metric over seeds, within the bounds of what the metric can be."""
    kind = kind_of(name)
    if kind in (Kind.share, Kind.score) and all(0 <= value <= 1 for value in values):
        return mean_interval(values, low=0.0, high=1.0)
    return mean_interval(values, low=0.0 if min(values) >= 0 else -math.inf)


def key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def swept_keys(cells: Sequence[Cell], *, seed: bool = False) -> list[str]:
    """Overridden keys in which readable cells differ, in the order of their first appearance; the seed if asked for."""
    # in the order in which they were typed
    rows = [
        {key_of(override): override.partition("=")[2] for override in cell.overrides}
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
