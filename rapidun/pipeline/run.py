"""Stage order, what is reused, the run folder: one run from its configuration to its report."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rapidun.base import preemption, processes
from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.limits import refusal, refusing
from rapidun.base.redact import keep_secret
from rapidun.base.text import first_line
from rapidun.config import plain as plain_values
from rapidun.config.plain import plain
from rapidun.config.run import RunConfig
from rapidun.pipeline.adapter import views
from rapidun.pipeline.artifacts import Artifacts
from rapidun.pipeline.check import room_warning, run_faults
from rapidun.pipeline.console import StageConsole
from rapidun.pipeline.folder import RunFolder, known_stages, new_run_dir
from rapidun.pipeline.result import final_metrics
from rapidun.pipeline.tracking.run import RunTracker, open_tracker
from rapidun.report.attacks import role_table
from rapidun.report.loaded import read_run_scores, read_run_weights
from rapidun.report.metrics import ATTACKED, PRIVACY
from rapidun.report.notebook import run_html
from rapidun.report.run.detectors import detector_table
from rapidun.report.run.page import write_run_report
from rapidun.report.tables import closing_table
from rapidun.stages.context import Memo
from rapidun.stages.poison.recipe import settle_by_size
from rapidun.stages.recipe import Recipe
from rapidun.stages.recipes import STAGES


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run hands back to Python."""

    run_dir: Path
    metrics: dict[str, Any]

    @property
    def weights(self) -> dict[str, list[float]]:
        """{"forget": [...], "retain": [...]} in row order. Raises: ArtifactError where the run made none."""
        return read_run_weights(self.run_dir)

    @property
    def scores(self) -> dict[str, Any]:
        """Influence blocks `ff` [nF, nF], `fr` [nF, nR], `rf`, `rr`, numpy: rows = training, columns = query.

        Raises: DataError where the run computed none.
        """
        return read_run_scores(self.run_dir)

    def _repr_html_(self) -> str:
        return run_html(self.run_dir)


@dataclass(frozen=True, kw_only=True)
class InSweep:
    """How a run that a worker of a sweep starts differs from one of its own."""

    # what status.json notes of the job
    job: dict[str, Any] = field(default_factory=dict)
    # make this artifact alone (`poison/0123456789abcdef`), for others to find
    only: str | None = None
    # keep model and hashes in memory for the next run of this process
    warm: bool = False
    memo: Memo | None = None
    # look at every number that is logged; one may raise Pruned
    observers: list[Callable[[str, dict[str, float], int | None], None]] = field(default_factory=list)
    # print the closing table
    show: bool = True


def run_pipeline(
    cfg: RunConfig,
    *,
    overrides: list[str],
    config_yaml: str,
    console: StageConsole | None = None,
    in_sweep: InSweep | None = None,
    warnings: Sequence[str] = (),
    checked: bool = False,
) -> Result:
    """Run the stages that `cfg.stages` names and write the run folder.

    Args:
        cfg: a checked configuration. overrides: what was typed, for command.txt.
        config_yaml: the resolved configuration as text. in_sweep: what differs in a worker of a sweep.
        warnings: said first, about what was asked for. checked: `run_faults` found nothing a moment ago.
    Raises: RapidunError for what the user can mend; Preempted when asked to stop; any other error is a failed stage.
        All leave status.json behind.
    """
    keep_secret(cfg.cluster.environment)
    in_sweep = in_sweep or InSweep()
    memo = in_sweep.memo or Memo()
    faults = [] if checked else run_faults(cfg, memo=memo)
    if faults:
        raise ConfigError(faults)
    settled = settle_by_size(cfg, memo)
    if settled:
        config_yaml = plain_values.config_yaml(cfg)
    with contextlib.ExitStack() as stack:
        if not processes.is_main():
            # one process writes the run folder; the others compute with it
            run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapidun-")))
            console = StageConsole(quiet=True)
        else:
            run_dir = Path(cfg.run_dir) if cfg.run_dir else new_run_dir(cfg.name)
        console = console or StageConsole()
        if settled and in_sweep.show:
            console.note(settled)
        in_sweep = replace(in_sweep, memo=memo)
        folder = RunFolder(run_dir)
        stack.callback(folder.close)
        if not in_sweep.job:
            # that of a job is watched by its driver, which takes `interrupted` for its end
            stack.enter_context(preemption.telling(folder.stopping))
        # what the machine refuses while the folder is opened, or its end is written
        stack.enter_context(refusing(_places(cfg, run_dir)))
        return _run(cfg, folder, overrides, config_yaml, console, in_sweep, warnings)


def _places(cfg: RunConfig, run_dir: Path) -> dict[str, Path]:
    """What a refusal of the machine may be about."""
    return {"run_dir": run_dir, "store_dir": Path(cfg.store_dir)}


def _run(
    cfg: RunConfig,
    folder: RunFolder,
    overrides: list[str],
    config_yaml: str,
    console: StageConsole,
    in_sweep: InSweep,
    warnings: Sequence[str],
) -> Result:
    run_dir = folder.path
    said: list[str] = []
    folder.open(
        config=plain(cfg),
        config_yaml=config_yaml,
        overrides=overrides,
        job=in_sweep.job,
        # a job that was queued again may start before the lease of its lost node has run out
        waits=bool(in_sweep.job),
        tell=said.append,
        on_wait=console.note,
    )
    warnings = [*warnings, *said]

    def on_progress(done: int, total: int, note: str = "") -> None:
        folder.heartbeat.progress(str(folder.status["stage"]), done, total)
        console.update(done, total, note)

    metrics: dict[str, Any] = {}
    tracker: RunTracker | None = None
    artifacts: Artifacts | None = None
    ending: bool | BaseException = True
    try:
        tracker = open_tracker(
            cfg,
            run_dir,
            on_progress=on_progress,
            on_warning=console.warn,
            on_note=console.note if in_sweep.show else lambda note: None,
            restarts=folder.status["restarts"],
            cell=in_sweep.only is None,
        )
        tracker.observers += in_sweep.observers
        for warning in warnings:
            tracker.warn(warning)
        artifacts = Artifacts(cfg, tracker, memo=in_sweep.memo, warm=in_sweep.warm)
        if in_sweep.only is not None:
            _run_only(in_sweep.only, artifacts, folder, console)
        else:
            metrics = _run_stages(artifacts, folder, console, check=in_sweep.show)
        folder.finish(metrics, tell=tracker.warn)
        ending = False
    except BaseException as error:
        told = refusal(error, _places(cfg, run_dir)) or error
        ending = told
        if isinstance(told, RapidunError) and artifacts is not None:
            told.ran = artifacts.what_ran()
        unsaid = folder.fail(told)
        if unsaid:
            console.warn(unsaid)
        if told is error:
            raise
        raise told from error
    finally:
        console.abort()
        if tracker is not None:
            tracker.finish(metrics, failed=ending, run_dir=run_dir)
        # one that Ctrl-C stopped amid a sweep goes on soon, and somebody waits for the prompt
        hurried = isinstance(ending, KeyboardInterrupt) and not in_sweep.show
        if in_sweep.only is None and processes.is_main() and not hurried and folder.is_ours():
            _report(run_dir, console, show=in_sweep.show)
    return Result(run_dir, metrics)


def _report(run_dir: Path, console: StageConsole, *, show: bool) -> None:
    """Write the report, of a failed run as well: it says what failed and shows what was finished.

    One that cannot be written is a warning: it changes nothing of what the run made, or of why it failed.
    """
    try:
        report = write_run_report(run_dir)
    except Exception as error:
        told = refusal(error, {"run_dir": run_dir}) or first_line(error)
        console.warn(f"report.html was not written: {told}. To write it later: rapidun report {run_dir}")
        return
    groups = (ATTACKED, PRIVACY)
    tables = (closing_table(run_dir), detector_table(run_dir), *(role_table(run_dir, group) for group in groups))
    for table in tables if show else ():
        if table is not None:
            console.console.print(table)
    if show:
        console.note(f"report: {report}")


def _run_only(id: str, artifacts: Artifacts, folder: RunFolder, console: StageConsole) -> None:
    """Obtain one artifact that the cells of a sweep share."""
    [stage] = artifacts.cfg.stages
    recipe = find_recipe(id, artifacts.recipes.of_stage(stage))
    folder.start_stage(stage)
    console.start(stage)
    artifact = artifacts.get(recipe)
    made = artifacts.made[recipe.stage]
    cost = folder.finish_stage(stage, {recipe.link: artifact}, cached=not any(made))
    artifacts.note_run(folder.path)
    console.finish(note=f"{'done' if any(made) else 'reused'}   {cost['seconds']:.1f} s")


def find_recipe(id: str, recipes: Sequence[Recipe]) -> Recipe:
    """The recipe of an artifact among these and what they are made from (a start model that several are made from)."""
    todo = list(recipes)
    while todo:
        recipe = todo.pop(0)
        if recipe.id == id:
            return recipe
        todo += recipe.needs
    raise ValueError(f"no recipe makes {id}")


def _run_stages(artifacts: Artifacts, folder: RunFolder, console: StageConsole, *, check: bool) -> dict[str, Any]:
    """Run stage after stage, note each in the run folder; return the flat contents of result.json.

    Args: check: hold the stages against the pack's splits, which planning a sweep has done already.
    """
    cfg = artifacts.cfg
    for stage in cfg.stages:
        preemption.raise_if_requested()
        if check and stage != "data":
            _check_rows(artifacts)
            check = False
        folder.start_stage(stage)
        console.start(stage)
        artifacts.run_stage(stage)
        made, links = artifacts.made.get(stage, []), artifacts.links.get(stage, {})
        cached = not any(made)  # a stage that nothing reads makes nothing
        cost = folder.finish_stage(stage, links, cached=cached, views=views(artifacts.recipes, stage) if links else {})
        if links:
            artifacts.note_run(folder.path)
        how = "reused" if cached else "done"
        console.finish(
            note=f"{how}   {cost['seconds']:.1f} s   {cost['peak_memory_gb']:.2f} GiB" if links else _idle(cfg, stage)
        )
        publish = STAGES[stage].publish
        if publish is not None:
            publish(folder.path / stage, {link: artifact.path for link, artifact in links.items()})
    return final_metrics(
        cfg.stages, name=cfg.name, seed=cfg.seed, links=artifacts.links, costs=known_stages(folder.status)
    )


def _idle(cfg: RunConfig, stage: str) -> str:
    why = cfg.idle.get(stage)
    return f"not run: nothing reads it with {why}" if why else "nothing to do"


def _check_rows(artifacts: Artifacts) -> None:
    """Before the first stage after data: what only the splits can tell, and whether there is room.

    Raises: ConfigError with every fault.
    """
    faults = artifacts.recipes.faults_of_rows()
    if faults:
        raise ConfigError(faults)
    missing = [recipe for recipe in artifacts.recipes.all() if artifacts.store.find(recipe.key) is None]
    warning = room_warning(artifacts.recipes, missing)
    if warning:
        artifacts.tracker.warn(warning)
