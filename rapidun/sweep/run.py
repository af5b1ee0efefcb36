"""`python sweep.py -m ...`: from the checked cells to their summary."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.files import read_json
from rapidun.base.locks import Lease
from rapidun.base.store import Store
from rapidun.config.cells import Cell
from rapidun.config.sweep import OnInterrupt, ResourcesConfig, SweepConfig
from rapidun.pipeline.folder import git_commit
from rapidun.sweep.console import SweepConsole
from rapidun.sweep.drive import Driver, Watched
from rapidun.sweep.finish import finish
from rapidun.sweep.folder import SWEEPS, SweepFolder
from rapidun.sweep.jobs import describe, write_jobs
from rapidun.sweep.launcher import Job
from rapidun.sweep.plan import Node, folder_of
from rapidun.sweep.prepare import Sweep, asked, prepare


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
    commit = git_commit()
    folder.write_plan(
        describe(
            sweep.plan, _in_order(sweep), launch=sweep.launch, launcher=sweep.launcher_name, overrides=overrides,
            commit=commit,
        )
    )  # fmt: skip
    jobs = write_jobs(
        sweep.plan, folder, max_failures=limit, shared_process=sweep.launcher.shares_process,
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
        if store.find(need.key) is None:
            store.make(need.key, need.build)
    store.make(node.recipe.key, node.recipe.build)


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
