"""How optuna searches: its settings, and the study in the journal of the sweep folder.

Every trial's sampler is made anew from the seed and the trial's number, so that what is picked depends on those and on
the trials told before, not on whether the search ran in one go.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ConfigError
from rapidun.config import keys
from rapidun.config.budget import Budget
from rapidun.report.metrics import tuned
from rapidun.sweep.pruning import JOURNAL, PRUNERS, STUDY, import_optuna, open_storage
from rapidun.sweep.tuning.space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

DIRECTIONS = {"minimize": -1, "maximize": 1}

# what a trial misses its budget by, for samplers that take constraints; None without a budget
Constraints = Callable[[Any], Sequence[float]] | None
# name -> how it is made of the search's seed, the trial's own, and the constraints; hydra.sweeper.sampler
SAMPLERS: dict[str, Callable[[Any, int, int, Constraints], BaseSampler]] = {
    # the liar keeps trials of one batch apart
    "tpe": lambda optuna, seed, own, bound: optuna.samplers.TPESampler(
        seed=own, constant_liar=True, constraints_func=bound
    ),
    "random": lambda optuna, seed, own, bound: optuna.samplers.RandomSampler(seed=own),
    "nsgaii": lambda optuna, seed, own, bound: optuna.samplers.NSGAIISampler(seed=own, constraints_func=bound),
    "gp": lambda optuna, seed, own, bound: optuna.samplers.GPSampler(
        seed=own, warn_independent_sampling=False, constraints_func=bound
    ),
    # one sequence for the whole search: its place is the number of trials
    "qmc": lambda optuna, seed, own, bound: optuna.samplers.QMCSampler(
        scramble=True, seed=seed, independent_sampler=optuna.samplers.RandomSampler(seed=own),
        warn_asynchronous_seeding=False, warn_independent_sampling=False,
    ),
}  # fmt: skip
# those that pick with the budget in mind; with the others it decides about the best alone
BOUNDED = ("tpe", "nsgaii", "gp")
# user attributes of a trial that has ended well: where it stands within the budget, by how much it misses each part
STANDS, EXCESSES = "budget", "excesses"
NEED_SCIPY = ("gp", "qmc")


def default_directions() -> dict[str, str]:
    """Metric -> minimize | maximize, of those that the catalogue names for it."""
    words = {sign: way for way, sign in DIRECTIONS.items()}
    return {name: words[sign] for name, sign in tuned().items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """hydra.sweeper.* of hydra/sweeper=rapidun_optuna."""

    n_trials: int = 20
    batch_size: int = 1
    # metric of result.json -> minimize | maximize
    directions: dict[str, str] = field(default_factory=default_directions)
    sampler: str = "tpe"
    seed: int = 0
    pruner: str = "none"
    prune_metric: str | None = None

    @property
    def signs(self) -> list[int]:
        return [DIRECTIONS[way] for way in self.directions.values()]


def read_settings(settings: Mapping[str, Any]) -> Tuning:
    """Check the settings of the sweeper.

    Args: settings: as Hydra composed them; directions null = default_directions.
    Raises: ConfigError with every fault.
    """
    directions = settings.get("directions")
    if directions is None:
        directions = default_directions()
    if not isinstance(directions, Mapping) or not directions:
        raise ConfigError(
            f"hydra.sweeper.directions: need {{METRIC: minimize | maximize}}, got {directions}. Pass "
            "'hydra.sweeper.directions={asr_seen: minimize}'"
        )
    found = Tuning(**{**settings, "directions": {str(name): str(way) for name, way in directions.items()}})
    faults = [
        f"hydra.sweeper.{name}: need at least {least}, got {getattr(found, name)}. Pass hydra.sweeper.{name}=..."
        for name, least in (("n_trials", 1), ("batch_size", 1), ("seed", 0))
        if getattr(found, name) < least
    ]
    for metric, way in found.directions.items():
        if way not in DIRECTIONS:
            faults.append(_no_such(f"directions.{metric}", way, DIRECTIONS))
    for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if getattr(found, name) not in known:
            faults.append(_no_such(name, getattr(found, name), known))
    if found.pruner != "none":
        if len(found.directions) > 1:
            faults.append(
                f"hydra.sweeper.pruner: need one direction, got {', '.join(found.directions)}. Pass "
                f"'hydra.sweeper.directions={{{next(iter(found.directions))}: minimize}}' or hydra.sweeper.pruner=none"
            )
        if found.prune_metric is None:
            faults.append(
                "hydra.sweeper.prune_metric: need a number that unlearning logs, got none. Pass "
                "hydra.sweeper.prune_metric=val_loss_clean, or hydra.sweeper.pruner=none"
            )
    elif found.prune_metric is not None:
        faults.append(
            f"hydra.sweeper.prune_metric: {found.prune_metric} is looked at by a pruner alone. Pass "
            "hydra.sweeper.pruner=median"
        )
    if found.sampler in NEED_SCIPY and find_spec("scipy") is None:
        faults.append(f"hydra.sweeper.sampler: {found.sampler} needs the package scipy, found none. pip install scipy")
    if faults:
        raise ConfigError(faults)
    return found


def _no_such(name: str, value: str, known: Mapping[str, Any]) -> str:
    close = keys.nearest(value, known)
    guess = f"did you mean {close}?" if close else f"Pass hydra.sweeper.{name}=..."
    return f"hydra.sweeper.{name}: need one of {', '.join(known)}, got {value}; {guess}"


def _missed_by(trial: FrozenTrial) -> Sequence[float]:
    """Above 0 = missed. A pruned trial has no results to judge and is taken by its pruned value alone."""
    found: list[float] = trial.user_attrs.get(EXCESSES, [0.0])
    return found


class Search:
    """A study and what is added to it: trials that go on after a kill, trials that are tried again.

    Args: fixed: dotted key -> value of what all trials share; a study with other values is refused. budget: the sampler
        is told by how much each trial misses it; a study with another one is refused.
    Raises: ConfigError if the folder holds the study of another search.
    """

    def __init__(
        self, folder: Path, tuning: Tuning, space: Space, *, fixed: Mapping[str, Any], budget: Budget | None = None
    ) -> None:
        self.tuning = tuning
        self.space = space
        self.budget = budget
        self._optuna = import_optuna()
        self.study = self._optuna.create_study(
            study_name=STUDY,
            storage=open_storage(folder / JOURNAL),
            directions=list(tuning.directions.values()),
            sampler=self._sampler(0),
            pruner=PRUNERS[tuning.pruner](self._optuna),
            load_if_exists=True,
        )
        self._refuse_others(folder, dict(fixed))

    def _refuse_others(self, folder: Path, fixed: dict[str, Any]) -> None:
        """Note what this search is, or compare it with what was noted by the first launch."""
        mine = {"directions": dict(self.tuning.directions), "space": self.space.describe(), "fixed settings": fixed,
                "budget": {} if self.budget is None else {"sweep.budget": self.budget.text}}  # fmt: skip
        for name, value in mine.items():
            theirs = self.study.user_attrs.get(name)
            if theirs is None and name == "budget" and self.study.trials:
                theirs = {}  # of a version that knew no budget
            if theirs is None:
                self.study.set_user_attr(name, value)
            elif theirs != value:
                differing = [key for key in {**theirs, **value} if theirs.get(key) != value.get(key)]
                shown = "; ".join(f"{key}: {theirs.get(key)} there, {value.get(key)} now" for key in differing[:5])
                raise ConfigError(
                    f"{folder}: need the {name} of its earlier trials, got others ({shown}). Pass another "
                    "sweep.name=..."
                )

    def _sampler(self, number: int) -> BaseSampler:
        digest = hashlib.sha256(f"{self.tuning.seed} {number}".encode()).digest()
        with warnings.catch_warnings():
            # optuna's words for parts of it that may change, and for the constraints_func of all versions until 7
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", ".*constraints_func", FutureWarning)
            return SAMPLERS[self.tuning.sampler](
                self._optuna, self.tuning.seed, int.from_bytes(digest[:4], "little"),
                None if self.budget is None else _missed_by,
            )  # fmt: skip

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def in_state(self, *names: str) -> list[FrozenTrial]:
        """Trials in these states (COMPLETE, PRUNED, FAIL, RUNNING, WAITING) that no later trial repeats."""
        trials = self.trials()
        repeated = {trial.user_attrs.get("retry_of") for trial in trials}
        return [trial for trial in trials if trial.state.name in names and trial.number not in repeated]

    def finished(self) -> list[FrozenTrial]:
        return self.in_state("COMPLETE", "PRUNED", "FAIL")

    def next_batch(self) -> list[Trial]:
        """The trials to run next: those that an earlier launch left behind, then new ones, up to a whole batch."""
        left = self.in_state("RUNNING")
        batch = [self._fill(self._optuna.trial.Trial(self.study, trial._trial_id)) for trial in left]
        num_asked = sum(trial.state.name != "WAITING" for trial in self.trials())
        size = self.tuning.batch_size
        # a batch that was cut short is filled up as it would have been, none is mixed with the next one
        room = -num_asked % size if left else size
        budget = self.tuning.n_trials - len(self.finished()) - len(left)
        for _ in range(min(room, budget)):
            batch.append(self._fill(self.study.ask()))
        return batch

    def _fill(self, trial: Trial) -> Trial:
        """Give the trial a value for every axis; those that it has already stay."""
        self.study.sampler = self._sampler(trial.number)
        for key in self.space.distributions:
            self.space.suggest(trial, key)
        return trial

    def try_again(self) -> list[int]:
        """Ask for the failed trials anew, unless another run would fail in the same way; return their numbers."""
        failed = [trial for trial in self.in_state("FAIL") if not trial.user_attrs.get("final")]
        for trial in failed:
            self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        return [trial.number for trial in failed]

    def tell(
        self,
        trial: Trial,
        state: str,
        *,
        values: Sequence[float] | None = None,
        notes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """End a trial. Args: notes: what the journal keeps beside the values."""
        for name, value in notes.items():
            trial.set_user_attr(name, value)
        self.study.tell(trial, values, state=self._optuna.trial.TrialState[state])
