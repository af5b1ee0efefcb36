"""The jobs of a sweep: their files, the plan in sweep.json, and what jobs.json tells of them later."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.nested import changes, leaves, with_changes
from rapidun.base.redact import HIDDEN, hide_entries
from rapidun.config import extensions
from rapidun.config.cells import Cell
from rapidun.config.plain import from_plain, plain
from rapidun.config.sweep import ClusterConfig
from rapidun.sweep.folder import PRIVATE, SweepFolder
from rapidun.sweep.launcher import JobState, Launcher, Phase
from rapidun.sweep.plan import LIGHT, Plan, PlannedJob, folder_of


def unit_of_cell(cell: Cell, sweep: SweepFolder) -> dict[str, Any]:
    return {
        "folder": cell.hash,
        "overrides": _shown(cell),
        "axes": cell.axes,
        # what reruns this cell alone, in its own folder
        "command": [*_shown(cell), f"run_dir={sweep.folder(cell.hash)}"],
        "config": _config(cell),
        "only": None,
    }


def _own(cell: Cell) -> list[str]:
    """The overrides of the run alone, without those of the sweep."""
    return [text for text in cell.overrides if not text.lstrip("+").startswith(("sweep.", "hydra."))]


def _shown(cell: Cell) -> list[str]:
    return [hide_entries(text) for text in _own(cell)]


def _config(cell: Cell) -> dict[str, Any]:
    """The settings of a job's cell. Its environment is set when the job starts: the worker needs no value of it."""
    config = plain(cell.cfg)
    config["cluster"]["environment"] = dict.fromkeys(cell.cfg.cluster.environment, HIDDEN)
    return config


def write_jobs(
    plan: Plan,
    sweep: SweepFolder,
    *,
    max_failures: int | None,
    shared_process: bool,
    trials: Mapping[str, Any] | None = None,
) -> None:
    """Write the file of every job."""
    for planned in plan.jobs:
        units = [_unit_of_artifact(node, sweep) for node in planned.nodes]
        units += [unit_of_cell(cell, sweep) for cell in planned.cells]
        for unit in units:
            unit["trial"] = (trials or {}).get(unit["folder"])
        content = {
            "id": planned.id,
            "units": units,
            "requires": [_need(plan, id, sweep) for id in planned.requires],
            "max_failures": max_failures,
            # files that the launching command named; their hashes must still be the same
            "extend": [{"path": one.path, "sha256": one.sha256} for one in extensions.loaded_files()],
            # several jobs run in one process: what is loaded may stay
            "shared_process": shared_process,
            # torch and its friends are loaded before the clock of the first stage starts
            "heavy": any(node.recipe.kind not in LIGHT for node in planned.nodes) or _is_heavy(planned, plan),
        }
        sweep.write_job(planned.id, content)


def _is_heavy(planned: PlannedJob, plan: Plan) -> bool:
    for cell in planned.cells:
        nodes = [plan.nodes[id] for id in plan.artifacts[cell.hash].values()]
        if any(node.found is None and node.recipe.kind not in LIGHT for node in nodes):
            return True
    return False


def _unit_of_artifact(node: Any, sweep: SweepFolder) -> dict[str, Any]:
    config = _config(node.cell)
    config["stages"] = [node.recipe.stage]
    config["name"] = f"{node.recipe.stage}-{node.recipe.fingerprint[:8]}"
    return {
        "folder": str(folder_of(node, sweep.path).relative_to(sweep.path)),
        "overrides": _shown(node.cell),
        "axes": node.cell.axes,
        "command": [*_shown(node.cell), f"stages=[{node.recipe.stage}]"],
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
        "extensions": extensions.noted(
            {name for cell in cells for name in (cell.cfg.unlearning.objective.name, cell.cfg.mapping.method.name)}
        ),
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
    return {"first": first, "others": {cell.hash: changes(first, plain(cell.cfg)) for cell in cells}}


@contextmanager
def of_a_launch(folder: SweepFolder) -> Iterator[None]:
    """Around what reads sweep.json. Raises: ConfigError where it is not as a launch writes it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{folder.path / 'sweep.json'}: need what a launch writes, got JSON of another shape "
            f"({type(error).__name__}: {error}). Run the sweep's own command again"
        ) from None


def cells_of(plan: Mapping[str, Any]) -> list[Cell]:
    """The cells of sweep.json, as they were composed."""
    extensions.need(plan.get("extensions"), what="sweep")
    configs = plan["configs"]
    return [
        Cell(
            overrides=cell["overrides"],
            cfg=from_plain(with_changes(configs["first"], configs["others"][cell["hash"]])),
            axes=cell["axes"],
            hash=cell["hash"],
        )
        for cell in plan["cells"]
    ]


def refuse_hidden(folder: SweepFolder, cells: Sequence[Cell]) -> None:
    """Before cells of sweep.json are run again.

    Raises: ConfigError where the file that has what it hides cannot be read.
    """
    hidden = {key for cell in cells for key, value in leaves(plain(cell.cfg)) if HIDDEN in str(value)}
    if hidden:
        raise ConfigError(
            f"{folder.path / PRIVATE}: need {', '.join(sorted(hidden))} as launched, which sweep.json hides, got no "
            "such file of its newest launch that can be read. Run this as who launched the sweep, or the sweep's own "
            "command again"
        )


def launch_of(plan: Mapping[str, Any]) -> int:
    """The number of the newest launch; 0 before the first."""
    found = plan.get("launch", 0)
    return found if isinstance(found, int) else 0


def cluster_of(plan: Mapping[str, Any]) -> ClusterConfig:
    return ClusterConfig(**plan["cluster"])


def known_jobs(
    folder: SweepFolder, launcher_of: Callable[[str], Launcher], *, driving: bool = False
) -> dict[str, dict[str, Any]]:
    """Every job of jobs.json, with the handles that a killed process could not note.

    Args: driving: this process holds the driver's lease, and so may cancel what was submitted half-way.
    """
    jobs = folder.jobs()
    for name in {job["launcher"] for job in jobs.values()}:
        try:
            launcher_of(name)
        except ConfigError:
            folder.say_odd(f"{folder.path / 'jobs.json'}: need jobs of launchers that are known, got some of {name}")
            jobs = {id: job for id, job in jobs.items() if job["launcher"] != name}
    unnoted: dict[str, list[str]] = {}
    for id, job in jobs.items():
        if job["handle"] is None and not job["over"]:
            unnoted.setdefault(job["launcher"], []).append(id)
    for name, ids in unnoted.items():
        for id, handle in launcher_of(name).unnoted_handles(ids, drop_broken=driving).items():
            jobs[id] = {**jobs[id], "handle": handle}
    return jobs


def live_jobs(jobs: Mapping[str, Mapping[str, Any]], launcher_of: Callable[[str], Launcher]) -> dict[str, JobState]:
    """The jobs of earlier launches that wait or run, as their launchers see them now."""
    by_launcher: dict[str, dict[str, str]] = {}
    for id, job in jobs.items():
        if job.get("handle") and not job.get("over"):
            by_launcher.setdefault(job["launcher"], {})[id] = job["handle"]
    found: dict[str, JobState] = {}
    for name, handles in by_launcher.items():
        launcher = launcher_of(name)
        if launcher.outlives_driver:
            found.update(launcher.states(handles))
    return {id: state for id, state in found.items() if state.phase in (Phase.waiting, Phase.running)}
