"""`python sweep.py -m hydra/sweeper=rapidun_optuna ...`: batches of trials that optuna picks, through the launchers.

Ask for a batch, run its cells as any sweep does, tell what came of them. The journal holds the trials, the run folders
(found by their hash) the results: killed at any moment, the same command goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.nested import leaves
from rapidun.base.redact import hide
from rapidun.config.asked import Asked
from rapidun.config.cells import Cell, SearchSpace, compose_rows, science, search_space, sweep_name
from rapidun.config.sweep import SweepConfig
from rapidun.report.sweep.budget import make_budget
from rapidun.sweep.console import SweepConsole
from rapidun.sweep.folder import SWEEPS, SweepFolder, SweepLock
from rapidun.sweep.prepare import Batch, Sweep, prepare
from rapidun.sweep.pruning import JOURNAL
from rapidun.sweep.run import finish, launch
from rapidun.sweep.tuning import leaders
from rapidun.sweep.tuning.outcomes import judged, logged_names, read_outcome
from rapidun.sweep.tuning.search import BOUNDED, Search, Tuning, read_settings
from rapidun.sweep.tuning.space import Space

if TYPE_CHECKING:
    from optuna.trial import Trial

# overrides that say how the sweep runs, not what a trial is
NOT_OF_A_TRIAL = ("hydra/sweeper", "hydra/launcher", "hydra.sweeper.", "hydra.launcher.")


def run_tuning(
    overrides: Sequence[str],
    *,
    launcher_name: str,
    settings: dict[str, Any],
    extra_dir: Path | None = None,
    tell_folder: Callable[[Path], None] = lambda folder: None,
) -> int:
    """Run trials until there are `n_trials` in all; return 0, 1 if any failed, or 130 if interrupted.

    Args: overrides: as typed; the swept keys are the search space. settings: hydra.sweeper.* as Hydra composed them.
        tell_folder: gets the sweep's folder.
    Raises: ConfigError for what the user can mend.
    """
    tuning = read_settings(settings)
    found = search_space(overrides, extra_dir=extra_dir)
    space = Space(found.axes)
    fixed = [text for text in found.fixed if not text.lstrip("+~").startswith(NOT_OF_A_TRIAL)]
    asked = Asked(launcher_name)
    first = _probe(space, fixed, extra_dir, asked)
    _refuse(first.cfg.sweep, found)
    budget = None if first.cfg.sweep.budget is None else make_budget(first.cfg.sweep.budget)
    folder = SweepFolder(SWEEPS / (first.cfg.sweep.name or sweep_name(overrides)))
    tell_folder(folder.path)
    console = SweepConsole()
    for warning in asked.warnings:
        console.say(f"warning: {warning}")
    if (folder.path / "sweep.json").is_file() and not (folder.path / JOURNAL).is_file():
        raise ConfigError(f"{folder.path}: need a folder without the cells of another sweep. Pass sweep.name=...")

    def make_search() -> Search:
        return Search(folder.path, tuning, space, fixed=hide(fixed_settings(first)), budget=budget)

    if first.cfg.sweep.dry_run:
        search = make_search() if (folder.path / JOURNAL).is_file() else None
        console.say(leaders.dry_run(folder.path, tuning, space, search.trials() if search else [], budget=budget))
        return 0
    if budget is not None and tuning.sampler not in BOUNDED:
        console.say(
            f"hydra.sweeper.sampler: {tuning.sampler} picks without regard to sweep.budget, which decides about the "
            f"best alone; {', '.join(BOUNDED)} pick with it"
        )
    with SweepLock(folder):
        loop = _Loop(
            search=make_search(), folder=folder, settings=first.cfg.sweep, fixed=fixed, overrides=list(overrides),
            launcher_name=launcher_name, extra_dir=extra_dir, console=console,
        )  # fmt: skip
        try:
            return loop.run()
        except RapidunError as error:
            ended = len(loop.search.finished())
            error.ran = f"{ended} trials have ended, kept in {folder.path}" if ended else error.ran
            raise


def fixed_settings(cell: Cell) -> dict[str, Any]:
    """What the numbers of every trial depend on, by dotted key; the swept keys stand at the probe's values."""
    return dict(leaves(science(cell.cfg)))


def _probe(space: Space, fixed: Sequence[str], extra_dir: Path | None, asked: Asked) -> Cell:
    """The first of a few points of the space that is a valid configuration, so that a slip of the pen ends it here."""
    faults: list[str] = []
    good: list[Cell] = []
    for params in space.probes():
        try:
            good += compose_rows([[*fixed, *space.row(params)[0]]], extra_dir=extra_dir, asked=asked)
        except ConfigError as error:
            faults += error.faults
    if not good or asked.faults:
        raise ConfigError(list(dict.fromkeys([*asked.faults, *([] if good else faults)])))
    return good[0]


def _refuse(sweep: SweepConfig, found: SearchSpace) -> None:
    """What a search cannot take of a grid's settings."""
    faults = []
    if sweep.detach:
        faults.append("sweep.detach: a search has to wait for its trials. Leave it out")
    if sweep.where is not None:
        faults.append("sweep.where: optuna picks the cells. Leave it out and narrow the swept keys")
    if sweep.zip:
        faults.append("sweep.zip: optuna picks the value of each key. Leave it out")
    if faults:
        raise ConfigError(faults)


@dataclass(kw_only=True)
class _Loop:
    """One launch of a search."""

    search: Search
    folder: SweepFolder
    settings: SweepConfig
    fixed: list[str]
    overrides: list[str]
    launcher_name: str
    extra_dir: Path | None
    console: SweepConsole
    # cells by hash, those of earlier batches and launches first
    cells: dict[str, Cell] = field(default_factory=dict)
    # trial number -> cell
    cell_of: dict[int, Cell] = field(default_factory=dict)
    # cells that failed in this launch
    failed: dict[str, int] = field(default_factory=dict)
    num_failed: int = 0
    said: set[str] = field(default_factory=set)
    # that the pruner has nothing to look at
    warned: bool = False
    launcher: Any = None

    @property
    def tuning(self) -> Tuning:
        return self.search.tuning

    @property
    def limit(self) -> int | None:
        """Failures of this launch that end it."""
        return 1 if self.settings.fail_fast else self.settings.max_failures

    def run(self) -> int:
        self._recall()
        again = self.search.try_again() if self.settings.retry_failed else []
        counts = Counter(trial.state.name for trial in self.search.in_state("COMPLETE", "PRUNED", "FAIL", "RUNNING"))
        self.console.say(
            f"search {self.folder.path}: {self.tuning.n_trials} trials in all, "
            f"{counts['COMPLETE'] + counts['PRUNED'] + counts['FAIL']} there"
            + (f", {counts['RUNNING']} were under way and go on" if counts["RUNNING"] else "")
            + (f", {len(again)} that failed are tried again" if again else "")
        )
        status = 0
        while status == 0 and not self._over_limit() and (trials := self.search.next_batch()):
            status = self._run_batch(trials)
            leaders.write(self.folder.path, self.search, self.search.trials())
        return self._end(status)

    def _recall(self) -> None:
        """The cells of trials that earlier launches told or left."""
        whole = self.search.space.distributions.keys()
        known = [trial for trial in self.search.trials() if "cell" in trial.user_attrs and trial.params.keys() == whole]
        rows = [self.search.space.row(trial.params) for trial in known]
        cells = compose_rows([[*self.fixed, *row] for row, _ in rows], extra_dir=self.extra_dir)
        for trial, (_, labels), cell in zip(known, rows, cells, strict=True):
            self._keep(trial.number, replace(cell, axes=labels))

    def _compose(self, trial: Trial) -> Cell:
        """Raises: ConfigError if the trial's values make no valid configuration."""
        row, labels = self.search.space.row(trial.params)
        [cell] = compose_rows([[*self.fixed, *row]], extra_dir=self.extra_dir)
        return self._keep(trial.number, replace(cell, axes=labels))

    def _keep(self, number: int, cell: Cell) -> Cell:
        """Trials with the same settings share a cell."""
        self.cell_of[number] = self.cells.setdefault(cell.hash, cell)
        return self.cell_of[number]

    def _over_limit(self) -> bool:
        return self.limit is not None and self.num_failed >= self.limit

    def _run_batch(self, trials: Sequence[Trial]) -> int:
        earlier = list(self.cells.values())
        batch: dict[str, Cell] = {}
        to_run: list[Trial] = []
        for trial in trials:
            try:
                cell = self._compose(trial)
            except ConfigError as error:
                self._tell_failed(trial, f"not a valid configuration: {error.faults[0]}", final=True)
                continue
            trial.set_user_attr("cell", cell.hash)
            if cell.hash in self.failed:
                self._tell_failed(trial, f"the same settings as trial {self.failed[cell.hash]}, which failed")
                continue
            to_run.append(trial)
            batch[cell.hash] = cell
        if not batch or self._over_limit():
            return 0
        before = self.folder.states(batch)
        left = None if self.limit is None else self.limit - self.num_failed
        orders = Batch(
            earlier=[cell for cell in earlier if cell.hash not in batch], trials=self._orders(to_run), max_failures=left
        )
        sweep = self._plan(batch, to_run, orders)
        if sweep is None:
            return 0
        sweep.notes = [note for note in sweep.notes if note not in self.said]
        self.said.update(sweep.notes)
        status = launch(sweep, overrides=self.overrides, console=self.console)
        open_trials = [
            trial for trial in to_run if not self._tell(trial, was=before[self.cell_of[trial.number].hash].state)
        ]
        return status or (1 if open_trials else 0)

    def _plan(self, batch: dict[str, Cell], to_run: list[Trial], orders: Batch) -> Sweep | None:
        """Plan the cells. Once a trial has gone well, a cell whose inputs cannot be had is a failed trial.

        Raises: ConfigError if no trial has gone well yet.
        """
        try:
            return self._prepare(list(batch.values()), orders)
        except ConfigError:
            if not self.search.in_state("COMPLETE"):
                raise
        good: list[Cell] = []
        for name, cell in batch.items():
            try:
                self._prepare([cell], orders)
                good.append(cell)
            except ConfigError as error:
                for trial in [trial for trial in to_run if self.cell_of[trial.number].hash == name]:
                    to_run.remove(trial)
                    self._tell_failed(trial, error.faults[0])
        return self._prepare(good, orders) if good else None

    def _prepare(self, cells: list[Cell], batch: Batch) -> Sweep:
        sweep = prepare(
            cells, name=self.folder.path.name, launcher_name=self.launcher_name, notes=(), console=self.console,
            launcher=self.launcher, batch=batch,
        )  # fmt: skip
        # one launcher for all batches: its workers stay
        self.launcher = sweep.launcher
        return sweep

    def _orders(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """What TrialObserver needs to know in the worker, by cell; the first of equal trials speaks."""
        if self.tuning.pruner == "none":
            return None
        orders: dict[str, Any] = {}
        for trial in trials:
            order = {
                "journal": str((self.folder.path / JOURNAL).absolute()), "number": trial.number,
                "metric": self.tuning.prune_metric, "pruner": self.tuning.pruner,
            }  # fmt: skip
            orders.setdefault(self.cell_of[trial.number].hash, order)
        return orders

    # Telling

    def _tell(self, trial: Trial, *, was: str) -> bool:
        """Tell the study what became of a trial; return whether it is over."""
        folder = self.folder.folder(self.cell_of[trial.number].hash)
        outcome = read_outcome(folder, self.tuning.directions)
        if outcome.state is None:
            return False
        if outcome.state == "FAIL":
            if not outcome.final:
                self.failed.setdefault(folder.name, trial.number)
            self._tell_failed(trial, outcome.note, final=outcome.final)
        elif outcome.state == "PRUNED":
            self.search.tell(trial, "PRUNED", notes={"pruned": outcome.note})
            self._say(trial, f"pruned at {outcome.note}")
        elif outcome.values is not None:
            self._warn_unpruned(folder)
            # a name that not even the first trial has is a slip of the pen
            strict = not self.search.in_state("COMPLETE")
            stands, notes = judged(folder, self.search.budget, strict=strict)
            self.search.tell(trial, "COMPLETE", values=outcome.values, notes=notes)
            shown = [f"{name} {value:.4g}" for name, value in zip(self.tuning.directions, outcome.values, strict=True)]
            shown += [stands] if stands else []
            self._say(trial, ", ".join(shown) + (" (was done before)" if was == "done" else ""))
        return True

    def _tell_failed(self, trial: Trial, error: str, *, final: bool = False) -> None:
        self.num_failed += 1
        error = hide(error)
        self.search.tell(trial, "FAIL", notes={"error": error, "final": final})
        self._say(trial, f"failed: {error}", style="red")

    def _warn_unpruned(self, folder: Path) -> None:
        """Say once that the pruner has nothing to look at."""
        metric = self.tuning.prune_metric
        logged = logged_names(folder) if metric is not None and not self.warned else set()
        if logged and metric not in logged:
            self.warned = True
            self.console.say(
                f"hydra.sweeper.prune_metric: unlearning does not log {metric}, so nothing is pruned; it logs "
                f"{', '.join(sorted(logged))}",
                style="yellow",
            )

    def _say(self, trial: Trial, text: str, *, style: str | None = None) -> None:
        values = self.search.space.values(trial.params)
        shown = " ".join(f"{key}={value}" for key, value in values.items())
        ended = len(self.search.finished())
        self.console.say(f"trial {trial.number} ({ended} of {self.tuning.n_trials}): {text}   {shown}", style=style)

    def _end(self, status: int) -> int:
        """The usual summary of all cells, then the best trial or the Pareto set."""
        trials = self.search.trials()
        leaders.write(self.folder.path, self.search, trials)
        failed = self.search.in_state("FAIL")
        if status == 130:
            return status
        if self.cells and any(self.folder.folder(name).is_dir() for name in self.cells):
            status = max(status, finish(self.folder, list(self.cells)))
        leaders.show(self.search, trials)
        if self._over_limit():
            self.console.say(f"ended early: {self.num_failed} failed, as many as sweep.max_failures or fail_fast allow")
        counts = Counter(trial.state.name for trial in self.search.in_state("COMPLETE", "PRUNED", "FAIL", "RUNNING"))
        words = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "not finished"}
        shown = ", ".join(f"{counts[name]} {word}" for name, word in words.items() if counts[name])
        if self.search.budget is not None:
            shown += f"; {leaders.stands(self.search.in_state('COMPLETE'))}"
        self.console.say(f"search: {self.tuning.n_trials} trials: {shown or 'none'}")
        return 1 if failed or status or counts["RUNNING"] else 0
