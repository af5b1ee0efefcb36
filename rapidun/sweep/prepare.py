"""Plans a sweep: looks up what is there, sorts the cells, checks what the launcher would refuse."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.redact import keep_secret
from rapidun.base.store import Store
from rapidun.config.cells import Cell
from rapidun.config.model import Dtype
from rapidun.config.run import RunConfig
from rapidun.config.sweep import SweepConfig
from rapidun.pipeline.folder import git_commit
from rapidun.sweep.console import SweepConsole
from rapidun.sweep.ending import wait_for_cancelled
from rapidun.sweep.folder import SWEEPS, SweepFolder
from rapidun.sweep.jobs import known_jobs, launch_of, live_jobs
from rapidun.sweep.launcher import Job, Launcher, LauncherContext
from rapidun.sweep.launchers.registry import make_launcher
from rapidun.sweep.plan import Plan, Planner, folder_of, plan_cells, without_misfits
from rapidun.sweep.pruning import JOURNAL
from rapidun.sweep.triage import Triage, triage

# so many get a line that says how far planning is, however quick it is
MANY_CELLS = 100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How a launch differs that is one of several of a search: it says less, and leaves the summary to the search."""

    # cells of the batches before, which sweep.json lists as well
    earlier: Sequence[Cell] = ()
    # cell hash -> what its worker hands to rapidun.sweep.pruning
    trials: dict[str, Any] | None = None
    # failures that end it; None = none do
    max_failures: int | None = None


@dataclass(kw_only=True)
class Sweep:
    """A sweep that is planned and not launched yet."""

    folder: SweepFolder
    cells: list[Cell]
    launcher: Launcher
    launcher_name: str
    launch: int
    plan: Plan
    planner: Planner
    found: Triage
    # jobs under way from earlier launches: job id -> entry of jobs.json
    live: dict[str, dict[str, Any]]
    notes: list[str]
    # None: a sweep of its own
    batch: Batch | None = None

    @property
    def settings(self) -> SweepConfig:
        return self.cells[0].cfg.sweep

    def jobs(self) -> list[Job]:
        """The planned jobs as the launcher will be given them; their files need not be there yet."""
        return [
            Job(id=job.id, file=self.folder.job_file(job.id), needs=tuple(job.needs), resources=job.resources)
            for job in self.plan.jobs
        ]


def prepare(
    cells: Sequence[Cell],
    *,
    name: str,
    launcher_name: str,
    notes: Sequence[str],
    console: SweepConsole,
    launcher: Launcher | None = None,
    batch: Batch | None = None,
) -> Sweep:
    """Plan a sweep: look up what is there, sort the cells, check what the launcher would refuse.

    Args: launcher: of an earlier batch, whose workers go on; None = a new one of `launcher_name`.
    """
    folder = SweepFolder(SWEEPS / name)
    if batch is None and (SWEEPS / name / JOURNAL).is_file():
        raise ConfigError(
            f"sweep.name: need the folder of a grid or a new one, got {SWEEPS / name}, which holds a search "
            f"({JOURNAL}). Pass another sweep.name=..., or hydra/sweeper=rapidun_optuna"
        )
    everything = [*cells, *(batch.earlier if batch else ())]
    for cell in everything:
        cell.cfg.sweep.name = name
        keep_secret(cell.cfg.cluster.environment)
    first = cells[0].cfg
    context = LauncherContext(sweep_dir=folder.path, cluster=first.cluster, max_parallel=first.sweep.max_parallel)
    used = launcher or make_launcher(launcher_name, context)
    if used.runs_elsewhere:
        notes = [*notes, *_pin_dtype(everything)]
    planner = Planner(Store(Path(first.store_dir)), here=not used.runs_elsewhere)
    if batch is not None:
        known = {cell["hash"]: cell.get("artifacts", {}) for cell in folder.cells()}
        planner.artifacts.update({cell.hash: known.get(cell.hash, {}) for cell in batch.earlier})
    cells, left_out = without_misfits(planner, cells)
    notes = [*notes, *left_out]
    began = told = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > 1.0 or done == total >= MANY_CELLS:
            told = now
            left = f", about {(total - done) * (now - began) / done:.0f} s left" if done < total else ""
            console.say(f"planning: {done} of {total} cells{left}")

    faults = plan_cells(planner, cells, on_progress=on_progress)
    if first.sweep.detach and not used.detachable:
        faults.append(
            f"sweep.detach: need a launcher whose jobs go on by themselves, got hydra/launcher={launcher_name}. "
            "Pass hydra/launcher=rapidun_slurm"
        )
    if faults:
        refused = ConfigError(list(dict.fromkeys(faults)))
        refused.ran = what_ran(planner)
        raise refused
    notes = [*notes, *planner.notes]

    def launcher_of(wanted: str) -> Launcher:
        return used if wanted == launcher_name else make_launcher(wanted, context)

    entries = known_jobs(folder, launcher_of, driving=not first.sweep.dry_run)
    notes = [*notes, *(f"warning: {line}" for line in folder.odd)]
    if not first.sweep.dry_run:
        wait_for_cancelled(folder, entries, launcher_of, say=console.say)
    live = {id: entries[id] for id in live_jobs(entries, launcher_of)}
    found = triage(
        cells,
        folder,
        planner,
        live={name for entry in live.values() for name in entry["folders"]},
        settings=first.sweep,
        commit=git_commit(),
    )
    number = launch_of(folder.plan()) + 1
    plan = planner.plan(found.todo, prefix=f"r{number}-" if number > 1 else "")
    _use_live_jobs(plan, live, folder)
    return Sweep(
        folder=folder, cells=list(cells), launcher=used, launcher_name=launcher_name, launch=number, plan=plan,
        planner=planner, found=found, live=live, notes=[*notes, *found.notes], batch=batch,
    )  # fmt: skip


def what_ran(planner: Planner) -> str:
    """What planning has made; the error that ends it says so."""
    what = f"the splits of {planner.num_made} pack{'s' if planner.num_made > 1 else ''} were made, kept in"
    return f"no job was started; {what} {planner.store.root}" if planner.num_made else ""


def _use_live_jobs(plan: Plan, live: dict[str, dict[str, Any]], folder: SweepFolder) -> None:
    """Wait for a shared artifact that an earlier launch is making, instead of making it twice."""
    maker = {name: id for id, entry in live.items() for name in entry["folders"]}
    for job in list(plan.jobs):
        if not job.nodes:
            continue
        theirs = maker.get(str(folder_of(job.nodes[0], folder.path).relative_to(folder.path)))
        if theirs is None:
            continue
        plan.jobs.remove(job)
        for other in plan.jobs:
            other.needs = [theirs if need == job.id else need for need in other.needs]


def _pin_dtype(cells: Sequence[Cell]) -> list[str]:
    """`auto` depends on the machine, and jobs run on other machines than the one that plans: settle it for all."""
    pinned = set()
    for cell in cells:
        cfg: RunConfig = cell.cfg
        if cfg.model.dtype is Dtype.auto:
            cfg.model.dtype = Dtype.bfloat16 if cfg.resources.num_gpus else Dtype.float32
            pinned.add(cfg.model.dtype.name)
    return [
        f"model.dtype=auto stands for {dtype} in every job (pass model.dtype=... for another)"
        for dtype in sorted(pinned)
    ]
