"""`python sweep.py -m ...`: from the checked cells to their summary."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.composition import Cell
from rapidun.config import Dtype, RunConfig
from rapidun.errors import ConfigError
from rapidun.files import read_json
from rapidun.locks import Lease
from rapidun.runfolder import git_commit
from rapidun.store import Store
from rapidun.sweep.config import OnInterrupt, ResourcesConfig, SweepConfig
from rapidun.sweep.console import SweepConsole
from rapidun.sweep.drive import Driver, Watched, live_jobs
from rapidun.sweep.finish import finish
from rapidun.sweep.folder import SWEEPS, SweepFolder
from rapidun.sweep.launch import Triage, describe, triage, write_jobs
from rapidun.sweep.launchers.base import Job, Launcher, LauncherContext
from rapidun.sweep.launchers.registry import make_launcher
from rapidun.sweep.plan import Node, Plan, Planner, folder_of, plan_cells
from rapidun.sweep.pruning import JOURNAL
from rapidun.sweep.recovery import known_jobs

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


def run_sweep(
    cells: Sequence[Cell],
    *,
    name: str,
    overrides: Sequence[str],
    launcher_name: str,
    notes: Sequence[str] = (),
    console: SweepConsole | None = None,
) -> int:
    """Run every cell that is missing; return 0 if all are done, 1 if any failed, 130 if interrupted.

    Args: cells: checked, each with its hash. overrides: what was typed. notes: what was left out of the grid.
    Raises: ConfigError for what the user can mend, before anything is submitted.
    """
    console = console or SweepConsole()
    if cells[0].cfg.sweep.dry_run:
        from rapidun.sweep.dryrun import dry_run

        sweep = prepare(cells, name=name, launcher_name=launcher_name, notes=notes, console=console)
        console.say(dry_run(sweep))
        return 0
    # held while planning too: what is looked up must still hold when it is submitted
    with Held(SweepFolder(SWEEPS / name)):
        sweep = prepare(cells, name=name, launcher_name=launcher_name, notes=notes, console=console)
        return launch(sweep, overrides=overrides, console=console)


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
    first = cells[0].cfg
    notes = [*notes, *_pin_dtype(everything, launcher_name)]
    planner = Planner(Store(Path(first.store_dir)))
    if batch is not None:
        known = {cell["hash"]: cell["artifacts"] for cell in folder.plan().get("cells", [])}
        planner.artifacts.update({cell.hash: known.get(cell.hash, {}) for cell in batch.earlier})
    began = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal began
        if time.monotonic() - began > 1.0 or done == total >= MANY_CELLS:
            began = time.monotonic()
            console.say(f"planning: {done} of {total} cells")

    faults = plan_cells(planner, cells, on_progress=on_progress)
    context = LauncherContext(sweep_dir=folder.path, cluster=first.cluster, max_parallel=first.sweep.max_parallel)
    used = launcher or make_launcher(launcher_name, context)
    if first.sweep.detach and not used.detachable:
        faults.append(
            f"sweep.detach: need a launcher whose jobs go on by themselves, got hydra/launcher={launcher_name}. "
            "Pass hydra/launcher=rapidun_slurm"
        )
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))

    def launcher_of(wanted: str) -> Launcher:
        return used if wanted == launcher_name else make_launcher(wanted, context)

    entries = known_jobs(folder, launcher_of, driving=not first.sweep.dry_run)
    live = {id: entries[id] for id in live_jobs(entries, launcher_of)}
    found = triage(
        cells,
        folder,
        planner,
        live={name for entry in live.values() for name in entry["folders"]},
        settings=first.sweep,
        commit=git_commit(),
    )
    number = int(folder.plan().get("launch", 0)) + 1
    plan = planner.plan(found.todo, prefix=f"r{number}-" if number > 1 else "")
    _use_live_jobs(plan, live, folder)
    return Sweep(
        folder=folder, cells=list(cells), launcher=used, launcher_name=launcher_name, launch=number, plan=plan,
        planner=planner, found=found, live=live, notes=[*notes, *found.notes], batch=batch,
    )  # fmt: skip


def asked(sweep: Sweep) -> list[Job]:
    """The jobs as the launcher will be given them; their files need not be there yet."""
    return [
        Job(
            id=job.id, file=(sweep.folder.path / "jobs" / f"{job.id}.json").absolute(), needs=tuple(job.needs),
            resources=job.resources,
        )
        for job in sweep.plan.jobs
    ]  # fmt: skip


def launch(sweep: Sweep, *, overrides: Sequence[str], console: SweepConsole) -> int:
    """Submit, watch and sum up a planned sweep."""
    settings, folder, batch = sweep.settings, sweep.folder, sweep.batch
    limit = 1 if settings.fail_fast else settings.max_failures
    limit = batch.max_failures if batch else limit
    # before anything is written: a refused launch must not replace what an earlier one noted
    faults = sweep.launcher.check(asked(sweep))
    if faults:
        raise ConfigError(faults)
    for node in sweep.plan.at_once:
        _make_now(node)
    folder.clear_stop()
    shared_process = sweep.launcher_name in ("basic", "joblib")
    commit = git_commit()
    folder.write_plan(
        describe(
            sweep.plan, _in_order(sweep), launch=sweep.launch, launcher=sweep.launcher_name, overrides=overrides,
            commit=commit,
        )
    )  # fmt: skip
    jobs = write_jobs(
        sweep.plan, folder, max_failures=limit, shared_process=shared_process,
        trials=batch.trials if batch else None,
    )  # fmt: skip
    for note in sweep.notes:
        console.say(note)
    if batch is None:
        console.say(_opening(sweep))
    watched = {
        planned.id: Watched(
            jobs[planned.id],
            [
                *(str(folder_of(node, folder.path).relative_to(folder.path)) for node in planned.nodes),
                *(cell.hash for cell in planned.cells),
            ],
        )
        for planned in sweep.plan.jobs
    }
    driver = Driver(
        sweep=folder, launcher=sweep.launcher, launcher_name=sweep.launcher_name, launch=sweep.launch,
        watched=watched, max_failures=limit,
    )  # fmt: skip
    _reset(folder, [name for one in watched.values() for name in one.folders])
    # among them those whose handle a killed process could not note
    folder.note_jobs(sweep.live)
    # watched before anything is submitted: new jobs may have to wait for one of these
    for id, entry in sweep.live.items():
        if entry["launcher"] == sweep.launcher_name:
            driver.watched[id] = watched_entry(id, entry, folder)
    try:
        if sweep.launcher.submits_ahead:
            driver.submit_all()
        if settings.detach:
            console.say(f"submitted {len(sweep.plan.jobs)} jobs; follow them: rapidun sweep status {folder.path}")
            return 0
        return watch(driver, sweep.cells, settings=settings, console=console, summary=batch is None)
    except KeyboardInterrupt:
        # while submitting, or while summing up
        return _interrupted(driver, settings, console)


def watch(
    driver: Driver, cells: Sequence[Cell], *, settings: SweepConfig, console: SweepConsole, summary: bool = True
) -> int:
    """Follow the jobs to their end and sum up; Ctrl-C cancels them or leaves them, as `sweep.on_interrupt` says."""
    folder = driver.sweep
    hashes = [cell.hash for cell in cells]
    labels = {cell.hash: " ".join(f"{key}={value}" for key, value in cell.axes.items()) for cell in cells}

    def on_change(driver: Driver) -> None:
        names = [name for one in driver.watched.values() for name in one.folders if name.startswith("stages/")]
        console.update(folder.states(hashes), shared=list(folder.states(names).values()), labels=labels)

    driver.on_change = on_change
    console.start(folder.states(hashes))
    try:
        driver.run()
    except KeyboardInterrupt:
        console.stop()
        return _interrupted(driver, settings, console)
    finally:
        console.stop()
    if driver.stopped:
        console.say(f"ended early: {driver.stopped}", style="red")
    return finish(folder, hashes) if summary else 0


def watched_entry(id: str, entry: dict[str, Any], folder: SweepFolder) -> Watched:
    """A job of jobs.json, to be watched again."""
    file = (folder.path / "jobs" / f"{id}.json").resolve()
    wanted = read_json(file)["units"][0]["config"]["resources"]
    job = Job(id=id, file=file, needs=tuple(entry["needs"]), resources=ResourcesConfig(**wanted))
    return Watched(
        job, list(entry["folders"]), handle=entry["handle"], cancelled=entry.get("cancelled", False)
    )  # fmt: skip


def _interrupted(driver: Driver, settings: SweepConfig, console: SweepConsole) -> int:
    under_way = len(driver.handles_under_way())
    if settings.on_interrupt is OnInterrupt.keep and driver.launcher.detachable:
        console.say(
            f"\ninterrupted: {under_way} jobs go on. rapidun sweep status|cancel {driver.sweep.path}; "
            "the same command goes on here"
        )
        return 130
    driver.cancel()
    driver.settle()
    console.say(f"\ninterrupted: jobs cancelled, what is done stays in {driver.sweep.path}. The same command goes on")
    return 130


def _in_order(sweep: Sweep) -> list[Cell]:
    """The cells of this launch and of the batches before it, those first."""
    return [*(sweep.batch.earlier if sweep.batch else ()), *sweep.cells]


def _opening(sweep: Sweep) -> str:
    found = sweep.found
    parts = [f"{len(found.todo)} to run"]
    parts += [f"{len(found.done)} done"] if found.done else []
    parts += [f"{len(found.live)} under way"] if found.live else []
    parts += [f"{len(found.left)} left failed"] if found.left else []
    shared = sum(job.stage is not None for job in sweep.plan.jobs)
    return (
        f"sweep {sweep.folder.path}: {len(sweep.cells)} cells ({', '.join(parts)}), "
        f"{len(sweep.plan.jobs)} jobs, {shared} of them for shared results"
    )


def _reset(folder: SweepFolder, names: Sequence[str]) -> None:
    """What failed before and runs now waits again: its old error must not be taken for a new one."""
    for name, state in folder.states(names).items():
        if state.state == "done":
            # stale, or its artifact is gone: nothing of it counts, least of all that it is done
            (folder.folder(name) / "status.json").unlink()
        elif state.state != "waiting":
            folder.mark(name, "", state="waiting")


def _make_now(node: Node) -> None:
    """A light artifact that several cells share and nothing has to be waited for."""
    store = Store(Path(node.cell.cfg.store_dir))
    for need in node.recipe.needs:
        if store.find(need.kind, need.inputs) is None:
            store.make(need.kind, need.inputs, need.build)
    store.make(node.recipe.kind, node.recipe.inputs, node.recipe.build)


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


def _pin_dtype(cells: Sequence[Cell], launcher_name: str) -> list[str]:
    """`auto` depends on the machine, and jobs run on other machines than the one that plans: settle it for all."""
    if launcher_name != "rapidun_slurm":
        return []
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


class Held:
    """One process at a time drives a sweep."""

    def __init__(self, folder: SweepFolder) -> None:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise folder.not_writable(error) from None
        self.folder = folder
        self.lease = Lease(folder.path / "driver.lease")

    def __enter__(self) -> None:
        try:
            taken = self.lease.try_acquire()
        except OSError as error:
            raise self.folder.not_writable(error) from None
        if not taken:
            raise ConfigError(
                f"sweep: need {self.folder.path} for this process alone, but {self.lease.holder()} drives it (this is "
                f"process {os.getpid()}). rapidun sweep status {self.folder.path} looks on; or pass sweep.name=..."
            )

    def __exit__(self, *error: object) -> None:
        self.lease.release()
        # refused before anything was written: no trace is left
        with suppress(OSError):
            self.folder.path.rmdir()
