"""`python sweep.py -m ...`: from the checked cells to their summary."""

import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rapidun.base.errors import ConfigError
from rapidun.base.limits import refusal
from rapidun.base.manifest import Artifact
from rapidun.base.nested import at
from rapidun.base.screen import screen
from rapidun.base.store import Store
from rapidun.base.text import first_line
from rapidun.config.cells import Cell
from rapidun.config.sweep import OnInterrupt, SweepConfig
from rapidun.config.tracking import TrackerKind
from rapidun.pipeline.folder import git_commit
from rapidun.pipeline.tracking.trackio import shown_by
from rapidun.report.sweep.console import show
from rapidun.report.sweep.exports import write_sweep_summary
from rapidun.report.sweep.page import write_sweep_index
from rapidun.stages.recipe import Recipe
from rapidun.sweep.console import SweepConsole
from rapidun.sweep.drive import Driver, Watched, watched_entry
from rapidun.sweep.dryrun import dry_run
from rapidun.sweep.folder import SWEEPS, SweepFolder, SweepLock
from rapidun.sweep.interrupts import ending_alike
from rapidun.sweep.jobs import describe, write_jobs
from rapidun.sweep.plan import Node, folder_of
from rapidun.sweep.prepare import Sweep, prepare, what_ran


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
        sweep = prepare(cells, name=name, launcher_name=launcher_name, notes=notes, console=console)
        console.say(dry_run(sweep))
        return 0
    # held while planning too: what is looked up must still hold when it is submitted
    with SweepLock(SweepFolder(SWEEPS / name), tell=console.say):
        sweep = prepare(cells, name=name, launcher_name=launcher_name, notes=notes, console=console)
        return launch(sweep, overrides=overrides, console=console)


def launch(sweep: Sweep, *, overrides: Sequence[str], console: SweepConsole) -> int:
    """Submit, watch and sum up a planned sweep."""
    settings, folder, batch = sweep.settings, sweep.folder, sweep.batch
    limit = 1 if settings.fail_fast else settings.max_failures
    limit = batch.max_failures if batch else limit
    # before anything is written: a refused launch must not replace what an earlier one noted
    jobs = sweep.jobs()
    faults = sweep.launcher.check(jobs)
    if faults:
        refused = ConfigError(faults)
        refused.ran = what_ran(sweep.planner)
        raise refused
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
    write_jobs(
        sweep.plan, folder, max_failures=limit, shared_process=sweep.launcher.shares_process,
        trials=batch.trials if batch else None,
    )  # fmt: skip
    for note in sweep.notes:
        console.say(note)
    if batch is None:
        console.say(_opening(sweep))
    watched = {
        planned.id: Watched(
            job,
            [
                *(str(folder_of(node, folder.path).relative_to(folder.path)) for node in planned.nodes),
                *(cell.hash for cell in planned.cells),
            ],
        )
        for planned, job in zip(sweep.plan.jobs, jobs, strict=True)
    }
    driver = Driver(
        sweep=folder, launcher=sweep.launcher, launcher_name=sweep.launcher_name, launch=sweep.launch,
        watched=watched, max_failures=limit, say=console.say,
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
            left = len(driver.unsubmitted())
            console.say(
                f"submitted {len(sweep.plan.jobs) - left} jobs; follow them: rapidun sweep status {folder.path}"
            )
            if left:
                console.say(f"{left} jobs are not submitted: the same command later, or rapidun sweep resume, goes on")
            return 1 if left else 0
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
    with nullcontext() if driver.launcher.outlives_driver else ending_alike():
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


def finish(folder: SweepFolder, names: Sequence[str]) -> int:
    """Write and show the summary; return 1 if any of these cells is not done (or pruned).

    Args: names: the cells of the newest launch.
    """
    states = folder.states(names)
    counts = Counter(state.state for state in states.values())
    console = screen()
    if any(state.state != "waiting" for state in states.values()):
        try:
            summary = write_sweep_summary(folder.path)
            index = write_sweep_index(folder.path, summary)
        except Exception as error:
            told = refusal(error) or first_line(error)
            line = (
                f"warning: the sweep's report was not written: {told}. To write it later: rapidun report {folder.path}"
            )
            console.print(line, style="yellow", soft_wrap=True)
        else:
            show(console, summary)
            console.print(f"report: {index.with_name('report.html')}", soft_wrap=True)
    bad = [(name, state) for name, state in states.items() if state.state not in ("done", "pruned")]
    for name, state in bad[:20]:
        line = f"{folder.path / name}: {state.state}: {state.error or 'not run'}"
        console.print(line, style="red", soft_wrap=True)
    if len(bad) > 20:
        console.print(f"and {len(bad) - 20} more; rapidun sweep status {folder.path} lists them")
    for line in _trackers(folder):
        console.print(line, soft_wrap=True)
    if any(state.state in ("waiting", "interrupted") for _, state in bad):
        console.print(f"to run what is missing: rapidun sweep resume {folder.path}", soft_wrap=True)
    shown = ", ".join(f"{number} {word}" for word, number in counts.most_common())
    console.print(f"sweep: {len(states)} cells: {shown}", soft_wrap=True)
    return 1 if bad else 0


def _trackers(folder: SweepFolder) -> list[str]:
    """How to look at what the cells' tracker was told."""
    found = []
    if next(folder.path.glob("**/wandb/offline-run-*"), None) is not None:
        found.append(f"W&B ran offline; to upload: rapidun wandb sync {folder.path}")
    if next(folder.path.glob("*/tensorboard/events*"), None) is not None:
        found.append(f"TensorBoard: tensorboard --logdir {shlex.quote(str(folder.path))}")
    tracking = at(folder.plan(), "configs.first.tracking")
    if isinstance(tracking, dict) and tracking.get("kind") == TrackerKind.trackio.name:
        found.append(shown_by(str(tracking.get("project")), tracking.get("dir")))
    return found


def _interrupted(driver: Driver, settings: SweepConfig, console: SweepConsole) -> int:
    under_way = len(driver.handles_under_way())
    if not driver.submits:
        console.say(f"\ninterrupted: {under_way} jobs go on. rapidun sweep status|collect|cancel {driver.sweep.path}")
        return 130
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
    reads = {}
    for need in node.recipe.needs:
        reads[need.id] = _obtain(store, need).digest
    store.set_aside_damaged(node.recipe.key)
    store.make(node.recipe.key, node.recipe.build, reads=reads)


def _obtain(store: Store, recipe: Recipe) -> Artifact:
    found = store.whole(recipe.key)
    return store.make(recipe.key, recipe.build)[0] if found is None else found
