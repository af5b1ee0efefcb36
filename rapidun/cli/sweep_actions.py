"""What `rapidun sweep status|logs|collect|cancel|resume|retry` do: look after a sweep from any node, by its files."""

import argparse
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError, ConfigError
from rapidun.config.sweep import SweepConfig
from rapidun.report.read import read_object
from rapidun.report.sweep.cells import cell_folders
from rapidun.report.sweep.exports import read_sweep
from rapidun.report.sweep.runs import need_pyarrow, write_parquet
from rapidun.sweep.console import SweepConsole
from rapidun.sweep.drive import Driver, watched_entry
from rapidun.sweep.folder import SWEEPS, CellState, SweepFolder, SweepLock, is_driven
from rapidun.sweep.interrupts import one_interrupt
from rapidun.sweep.jobs import cells_of, cluster_of, known_jobs, live_jobs, of_a_launch, refuse_hidden
from rapidun.sweep.launcher import JobState, Launcher, LauncherContext
from rapidun.sweep.launchers.registry import launcher_class, make_launcher
from rapidun.sweep.run import finish, run_sweep, watch

NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def act(args: argparse.Namespace) -> int:
    """Exit status: 0 all done, 1 cells failed or are missing.

    Args: args: of `rapidun sweep`, see its parser.
    Raises: ConfigError for a folder that is no sweep's, or cannot be written where it has to be.
    """
    folder = SweepFolder.existing(args.dir)
    if args.action == "status":
        return _status(folder, watch=args.watch)
    if args.action == "logs":
        return _logs(folder, args.cells)
    try:
        if args.action == "cancel":
            return _cancel(folder)
        with one_interrupt():
            if args.action == "collect":
                return _collect(folder, parquet=args.parquet)
            return _go_on(_enter(folder), retry=args.action == "retry")
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise ConfigError(
            f"rapidun sweep {args.action}: need a folder that can be written, got {args.dir} ({error.strerror}). "
            "status and logs only read"
        ) from None


def _enter(folder: SweepFolder) -> SweepFolder:
    """Go to the directory that the sweep was launched from: relative paths in its settings are meant from there.

    Raises: ConfigError if the sweep's folder is no longer below it.
    """
    path = folder.path.resolve()
    noted = Path(str(folder.plan().get("directory", ".")))
    # a project folder that was moved, or is mounted elsewhere on this node, has kept its shape
    for start in (noted, *path.parents[2:3]):
        if (start / SWEEPS / path.name).is_dir() and (start / SWEEPS / path.name).resolve() == path:
            os.chdir(start)
            return SweepFolder(SWEEPS / path.name)
    raise ConfigError(
        f"sweep: need {path} at {SWEEPS / path.name} below the directory that it was launched from ({noted}): paths in "
        "its settings start there. Move it back"
    )


def _launchers(folder: SweepFolder, plan: Mapping[str, Any]) -> Callable[[str], Launcher]:
    with of_a_launch(folder):
        context = LauncherContext(
            sweep_dir=folder.path, cluster=cluster_of(plan), max_parallel=plan["sweep"]["max_parallel"]
        )
    made: dict[str, Launcher] = {}

    def get(name: str) -> Launcher:
        if name not in made:
            made[name] = make_launcher(name, context)
        return made[name]

    return get


def _status(folder: SweepFolder, *, watch: bool) -> int:
    plan = folder.plan()
    launcher_of = _launchers(folder, plan)
    console = SweepConsole()
    while True:
        jobs = known_jobs(folder, launcher_of)
        labels = _labels(folder, jobs)
        live = live_jobs(jobs, launcher_of)
        driven = is_driven(folder)
        states = settle(folder, list(labels), jobs, live, driven=driven)
        shared = [name for job in jobs.values() for name in job["folders"] if name.startswith("stages/")]
        if not watch or not live:
            break
        console.update(states, shared=list(folder.states(shared).values()), labels=labels)
        time.sleep(2.0)
    for line in folder.odd:
        console.say(f"warning: {line}", style="yellow")
    console.say(f"{folder.path} ({plan.get('launcher')}, launched {plan.get('time')}, {len(live)} jobs under way)")
    console.say(console.line(states, list(folder.states(shared).values())))
    left = [name for name, state in states.items() if state.state not in ("done", "pruned", "failed")]
    if left and not live and not driven:
        why = folder.stopped()
        console.say(
            f"interrupted{f' ({why})' if why else ''}: nothing is under way, {len(left)} cells are left. "
            f"rapidun sweep resume {folder.path} goes on"
        )
    for name, state in states.items():
        if state.state in ("failed", "lost", "interrupted", "running"):
            what = state.error or f"{state.stage or ''} {state.progress:.0%}"
            console.say(f"  {name} {state.state:<11} {labels[name]}: {what}")
    for name, state in folder.states(dict.fromkeys(shared)).items():
        if state.state in ("failed", "lost", "interrupted", "running"):
            console.say(f"  {name} {state.state:<11} {state.error or state.stage or ''}")
    # what waits for nothing is missing
    fine = ("done", "pruned", "running", "waiting") if live or driven else ("done", "pruned")
    return 0 if all(state.state in fine for state in states.values()) else 1


def _labels(folder: SweepFolder, jobs: Mapping[str, Any]) -> dict[str, str]:
    """Every cell of the folder, those of earlier launches too -> its swept values."""
    axes = {cell["hash"]: cell["axes"] for cell in folder.cells()}
    submitted = (name for job in jobs.values() for name in job["folders"] if not name.startswith("stages/"))
    for name in dict.fromkeys([*submitted, *sorted(path.name for path in cell_folders(folder.path))]):
        if name not in axes:
            axes[name] = _axes(folder.folder(name) / "overrides.json")
    return {name: " ".join(f"{key}={value}" for key, value in own.items()) for name, own in axes.items()}


def _axes(path: Path) -> dict[str, Any]:
    """The swept values of a cell that no plan tells of any more."""
    try:
        found = read_object(path).get("axes")
    except ArtifactError:
        return {}
    return found if isinstance(found, dict) else {}


def settle(
    folder: SweepFolder, names: Sequence[str], jobs: Mapping[str, Any], live: Mapping[str, JobState], *, driven: bool
) -> dict[str, CellState]:
    """The cells' states. Those that say running in a job that is over are `lost`, or interrupted if it was told to end.

    Args: driven: somebody drives the sweep; of jobs that only that process sees nothing is known here.
    """
    under_way = {name for id in live for name in jobs[id]["folders"]}
    outlives = {
        name: launcher_class(job["launcher"]).outlives_driver for job in jobs.values() for name in job["folders"]
    }
    cancelled = folder.stopped() is not None

    def settled(name: str, state: CellState) -> CellState:
        if state.state not in ("running", "lost") or name not in outlives or name in under_way:
            return state
        if not outlives[name]:
            gone = CellState(state="interrupted", stage=state.stage, error="the process that ran it is gone")
            return state if driven else gone
        if cancelled:
            return CellState(state="interrupted", stage=state.stage, error="its job was cancelled")
        return CellState(state="lost", stage=state.stage, error="its job is gone")

    return {name: settled(name, state) for name, state in folder.states(names).items()}


def _logs(folder: SweepFolder, cells: Sequence[str]) -> int:
    plan = folder.plan()
    launcher_of = _launchers(folder, plan)
    jobs = known_jobs(folder, launcher_of)
    everything = [name for job in jobs.values() for name in job["folders"]]
    unknown = [cell for cell in cells if not any(name.startswith(cell) for name in everything)]
    if unknown:
        raise ConfigError(f"rapidun sweep logs: no such cell in {folder.path}: {', '.join(unknown)}")
    if cells:
        wanted = [name for name in everything if any(name.startswith(cell) for cell in cells)]
    else:
        wanted = [name for name, state in folder.states(everything).items() if state.state in ("failed", "lost")]
    shown: set[str] = set()
    for id, job in jobs.items():
        if not set(job["folders"]) & set(wanted) or not job["handle"]:
            continue
        log = launcher_of(job["launcher"]).log(job["handle"])
        if log is None or str(log) in shown:
            continue
        shown.add(str(log))
        print(f"==> {id} ({', '.join(job['folders'])}): {log}")
        print(log.read_text(encoding="utf-8", errors="replace").rstrip() if log.is_file() else "(nothing printed)")
    if not shown:
        print("no logs: nothing failed" if not cells else "no logs of these cells yet")
    return 0


def _cancel(folder: SweepFolder) -> int:
    plan = folder.plan()
    launcher_of = _launchers(folder, plan)
    jobs = known_jobs(folder, launcher_of)
    live = live_jobs(jobs, launcher_of)
    # noted first: whoever goes on waits until these have ended
    folder.stop("cancelled by rapidun sweep cancel", handles=[jobs[id]["handle"] for id in live])
    by_launcher: dict[str, dict[str, str]] = {}
    for id in live:
        by_launcher.setdefault(jobs[id]["launcher"], {})[id] = jobs[id]["handle"]
    for name, handles in by_launcher.items():
        launcher_of(name).cancel(handles)
    print(f"{len(live)} jobs cancelled; `rapidun sweep resume {folder.path}` goes on with what is missing")
    return 0


def _collect(folder: SweepFolder, *, parquet: Path | None) -> int:
    """Wait for what is under way and sum up; nothing is started, new or again."""
    if parquet is not None:
        need_pyarrow()
    plan = folder.plan()
    with of_a_launch(folder):
        cells = cells_of(plan)
        launch = int(plan["launch"])
    launcher_of = _launchers(folder, plan)
    console = SweepConsole()
    with SweepLock(folder, tell=console.say):
        jobs = known_jobs(folder, launcher_of)
        live, told = live_jobs(jobs, launcher_of), folder.told_to_end()
        for name in dict.fromkeys(jobs[id]["launcher"] for id in live):
            watched = {id: watched_entry(id, jobs[id], folder) for id in live if jobs[id]["launcher"] == name}
            for one in watched.values():
                one.cancelled = one.cancelled or one.handle in told
            driver = Driver(
                sweep=folder, launcher=launcher_of(name), launcher_name=name, launch=launch, watched=watched,
                submits=False,
            )  # fmt: skip
            status = watch(driver, cells, settings=cells[0].cfg.sweep, console=console, summary=False)
            if status != 0:
                return status
        status = finish(folder, list(_labels(folder, jobs)))
        if parquet is not None:
            write_parquet(read_sweep(folder.path), parquet)
            console.say(f"runs: {parquet}")
    return status


def _go_on(folder: SweepFolder, *, retry: bool) -> int:
    """Wait for what is under way, then run what is missing, as the same command would.

    Args: retry: run failed cells again, whatever sweep.retry_failed says.
    """
    plan = folder.plan()
    with of_a_launch(folder):
        cells = cells_of(plan)
        launched = {key: plan[key] for key in ("launcher", "launch", "overrides")}
    settings: SweepConfig = cells[0].cfg.sweep
    settings.detach = settings.dry_run = False
    settings.retry_failed = settings.retry_failed or retry
    launcher_of = _launchers(folder, plan)
    jobs = known_jobs(folder, launcher_of)
    live = {
        id: state for id, state in live_jobs(jobs, launcher_of).items() if jobs[id]["launcher"] != launched["launcher"]
    }
    if live:
        # of an earlier launch with another launcher; run_sweep looks after its own
        with SweepLock(folder, tell=SweepConsole().say):
            for name in dict.fromkeys(jobs[id]["launcher"] for id in live):
                watched = {
                    id: watched_entry(id, jobs[id], folder) for id in live if jobs[id]["launcher"] == name
                }  # fmt: skip
                driver = Driver(
                    sweep=folder,
                    launcher=launcher_of(name),
                    launcher_name=name,
                    launch=launched["launch"],
                    watched=watched,
                )
                status = watch(driver, cells, settings=settings, console=SweepConsole())
                if status == 130:
                    return status
    names = [cell.hash for cell in cells]
    if all(state.state in ("done", "pruned") for state in folder.states(names).values()):
        # takes a killed driver's lease over, and with it away
        with SweepLock(folder, tell=SweepConsole().say):
            return finish(folder, names)
    refuse_hidden(folder, cells)
    return run_sweep(cells, name=folder.path.name, overrides=launched["overrides"], launcher_name=launched["launcher"])
