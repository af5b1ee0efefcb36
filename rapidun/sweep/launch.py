"""Turns a plan into job files, and keeps the cells that are done or under way out of it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapidun.composition import Cell, from_plain
from rapidun.files import write_json
from rapidun.schema import plain
from rapidun.sweep.config import ClusterConfig, SweepConfig
from rapidun.sweep.folder import CellState, SweepFolder
from rapidun.sweep.launchers.base import Job
from rapidun.sweep.plan import LIGHT, Plan, PlannedJob, Planner, folder_of


@dataclass(kw_only=True)
class Triage:
    """The cells of a sweep by what there is to do."""

    done: list[Cell] = field(default_factory=list)
    # in a job that waits or runs
    live: list[Cell] = field(default_factory=list)
    todo: list[Cell] = field(default_factory=list)
    # failed before, and not to be tried again
    left: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def triage(
    cells: Sequence[Cell],
    sweep: SweepFolder,
    planner: Planner,
    *,
    live: set[str],
    settings: SweepConfig,
    commit: str | None,
) -> Triage:
    """Sort the cells: a done cell whose inputs or stage versions have changed is run again, and said to be stale.

    Args: live: names of the run folders that jobs under way will write. commit: of the code that runs now.
    """
    found = Triage()
    stale: dict[str, int] = {}
    other_code: dict[str, int] = {}
    for cell in cells:
        state = sweep.states([cell.hash])[cell.hash]
        if cell.hash in live:
            found.live.append(cell)
        elif state.state in ("done", "pruned"):
            why = _stale(state, planner.artifacts[cell.hash])
            if why and state.state == "done":
                stale[why] = stale.get(why, 0) + 1
                found.todo.append(cell)
                continue
            if commit and state.git_commit and state.git_commit != commit:
                other_code[state.git_commit[:10]] = other_code.get(state.git_commit[:10], 0) + 1
            found.done.append(cell)
        elif state.state == "failed" and not settings.retry_failed:
            found.left.append(cell)
        else:
            found.todo.append(cell)
    found.notes += [f"{number} cells are stale and run again: {why} changed since" for why, number in stale.items()]
    found.notes += [
        f"{number} cells were made by other code (commit {theirs}, now {str(commit)[:10]}); their settings, inputs and "
        "stage versions are the same, so they are kept. Another sweep.name and store_dir make them anew"
        for theirs, number in other_code.items()
    ]
    if found.left:
        found.notes.append(f"{len(found.left)} cells failed before and are left alone (sweep.retry_failed=false)")
    return found


def _stale(state: CellState, planned: Mapping[str, str]) -> str:
    """The first artifact of a done cell that is another one now; empty when none is."""
    noted = state.artifacts or {}
    for link, id in planned.items():
        if noted.get(link) != id:
            return id.partition("/")[0]
    return ""


def unit_of_cell(cell: Cell, sweep: SweepFolder) -> dict[str, Any]:
    return {
        "folder": cell.hash,
        "overrides": _own(cell),
        "axes": cell.axes,
        # what reruns this cell alone, in its own folder
        "command": [*_own(cell), f"run_dir={sweep.folder(cell.hash)}"],
        "config": plain(cell.cfg),
        "only": None,
    }


def _own(cell: Cell) -> list[str]:
    """The overrides of the run alone, without those of the sweep."""
    return [text for text in cell.overrides if not text.lstrip("+").startswith(("sweep.", "hydra."))]


def write_jobs(
    plan: Plan,
    sweep: SweepFolder,
    *,
    max_failures: int | None,
    shared_process: bool,
    trials: Mapping[str, Any] | None = None,
) -> dict[str, Job]:
    """Write the file of every job; return what launchers take."""
    jobs: dict[str, Job] = {}
    for planned in plan.jobs:
        file = sweep.path / "jobs" / f"{planned.id}.json"
        units = [_unit_of_artifact(node, sweep) for node in planned.nodes]
        units += [unit_of_cell(cell, sweep) for cell in planned.cells]
        for unit in units:
            unit["trial"] = (trials or {}).get(unit["folder"])
        content = {
            "id": planned.id,
            "units": units,
            "requires": [_need(plan, id, sweep) for id in planned.requires],
            "max_failures": max_failures,
            # several jobs run in one process: what is loaded may stay
            "shared_process": shared_process,
            # torch and its friends are loaded before the clock of the first stage starts
            "heavy": any(node.recipe.kind not in LIGHT for node in planned.nodes) or _is_heavy(planned, plan),
        }
        write_json(file, content)
        jobs[planned.id] = Job(
            id=planned.id, file=file.resolve(), needs=tuple(planned.needs), resources=planned.resources
        )
    return jobs


def _is_heavy(planned: PlannedJob, plan: Plan) -> bool:
    for cell in planned.cells:
        nodes = [plan.nodes[id] for id in plan.artifacts[cell.hash].values()]
        if any(node.found is None and node.recipe.kind not in LIGHT for node in nodes):
            return True
    return False


def _unit_of_artifact(node: Any, sweep: SweepFolder) -> dict[str, Any]:
    config = plain(node.cell.cfg)
    config["stages"] = [node.recipe.stage]
    config["name"] = f"{node.recipe.stage}-{node.recipe.fingerprint[:8]}"
    return {
        "folder": str(folder_of(node, sweep.path).relative_to(sweep.path)),
        "overrides": _own(node.cell),
        "axes": node.cell.axes,
        "command": [*_own(node.cell), f"stages=[{node.recipe.stage}]"],
        "config": config,
        "only": node.recipe.id,
    }


def _need(plan: Plan, id: str, sweep: SweepFolder) -> dict[str, str]:
    node = plan.nodes[id]
    return {
        "artifact": id,
        "path": f"{node.cell.cfg.store_dir}/{id}",
        "folder": str(folder_of(node, sweep.path).relative_to(sweep.path)),
    }


def describe(
    plan: Plan, cells: Sequence[Cell], *, launch: int, launcher: str, overrides: Sequence[str], commit: str | None
) -> dict[str, Any]:
    """The contents of sweep.json."""
    first = cells[0].cfg
    return {
        "launch": launch,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "overrides": list(overrides),
        "launcher": launcher,
        # relative paths (store_dir, files of a pack) are meant from here
        "directory": os.getcwd(),
        "git_commit": commit,
        "store_dir": first.store_dir,
        # of the newest launch, for `rapidun sweep`: the settings of every cell, whether it runs now or not
        "configs": _configs(cells),
        "sweep": plain(first.sweep),
        "cluster": plain(first.cluster),
        "cells": [
            {
                "hash": cell.hash, "number": number, "overrides": _own(cell), "axes": cell.axes,
                "artifacts": plan.artifacts[cell.hash],
            }
            for number, cell in enumerate(cells, start=1)
        ],
        "jobs": [
            {
                "id": job.id,
                "wave": job.wave,
                "stage": job.stage,
                "artifacts": [node.recipe.id for node in job.nodes],
                "cells": [cell.hash for cell in job.cells],
                "needs": job.needs,
            }
            for job in plan.jobs
        ],
    }  # fmt: skip


def _configs(cells: Sequence[Cell]) -> dict[str, Any]:
    """The first cell's configuration, and what each cell has otherwise: a thousand cells share nearly all."""
    first = plain(cells[0].cfg)
    return {"first": first, "others": {cell.hash: _difference(first, plain(cell.cfg)) for cell in cells}}


def _difference(base: Any, other: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and set(base[key]) == set(value):
            inner = _difference(base[key], value)
            if inner:
                found[key] = inner
        elif base.get(key) != value:
            found[key] = {"=": value}
    return found


def _apply(base: dict[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for key, value in difference.items():
        made[key] = value["="] if set(value) == {"="} else _apply(base[key], value)
    return made


def cells_of(plan: Mapping[str, Any]) -> list[Cell]:
    """The cells of sweep.json, as they were composed."""
    configs = plan["configs"]
    return [
        Cell(
            overrides=cell["overrides"],
            cfg=from_plain(_apply(configs["first"], configs["others"][cell["hash"]])),
            axes=cell["axes"],
            hash=cell["hash"],
        )
        for cell in plan["cells"]
    ]


def cluster_of(plan: Mapping[str, Any]) -> ClusterConfig:
    return ClusterConfig(**plan["cluster"])
