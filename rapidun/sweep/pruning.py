"""Ends trials that promise little: the worker notes intermediate values in the study's journal and asks the pruner.

The journal is a file of JSON lines in the sweep folder. Its lock is a file made with O_EXCL, which NFS honours since
version 3; one whose holder died is taken away after 30 seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base import processes
from rapidun.base.errors import ConfigError
from rapidun.base.preemption import Pruned

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage

JOURNAL = "optuna.jsonl"
STUDY = "tuning"
# only what no other trial waits for may be given up: earlier stages are shared
PRUNED_STAGE = "unlearning"


def import_optuna() -> Any:
    """Import optuna with its log lines off.

    Raises: ConfigError if it is not installed, or too old.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "hydra/sweeper=rapidun_optuna: need the package optuna, found none. pip install 'rapidun[optuna]'"
        ) from None
    if int(optuna.__version__.partition(".")[0]) < 4:
        raise ConfigError(
            f"hydra/sweeper=rapidun_optuna: need optuna >= 4, got {optuna.__version__}. pip install 'rapidun[optuna]'"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# name -> how it is made; hydra.sweeper.pruner
PRUNERS: dict[str, Callable[[Any], BasePruner]] = {
    "none": lambda optuna: optuna.pruners.NopPruner(),
    "median": lambda optuna: optuna.pruners.MedianPruner(),
    "hyperband": lambda optuna: optuna.pruners.HyperbandPruner(),
    "successive_halving": lambda optuna: optuna.pruners.SuccessiveHalvingPruner(),
}


def open_storage(path: Path) -> JournalStorage:
    """Open a journal; the file is made if there is none."""
    optuna = import_optuna()
    journal = optuna.storages.journal
    # absolute: other processes have other working directories
    name = os.path.abspath(path)
    lock = journal.JournalFileOpenLock(name)
    backend = journal.JournalFileBackend(name, lock_obj=lock)
    lock.acquire()
    try:
        _mend(path)
    finally:
        lock.release()
    return optuna.storages.JournalStorage(backend)


def _mend(path: Path) -> None:
    """Cut off a last line that a dying process left without its end: the next one would be glued to it."""
    with path.open("r+b") as file:
        content = file.read()
        kept = content.rfind(b"\n") + 1
        if kept < len(content):
            file.truncate(kept)


class TrialObserver:
    """Looks at the numbers that a trial's training logs.

    Args: trial: {"journal": path, "number": of the trial, "metric": name, "pruner": name in PRUNERS}.
    """

    def __init__(self, trial: Mapping[str, Any]) -> None:
        self.metric = str(trial["metric"])
        self._trial: Any = None
        self._known: set[int] = set()
        if not processes.is_main():
            # of the processes that train together, the first decides for all
            return
        optuna = import_optuna()
        study = optuna.load_study(
            study_name=STUDY,
            storage=open_storage(Path(trial["journal"])),
            sampler=optuna.samplers.RandomSampler(),
            pruner=PRUNERS[trial["pruner"]](optuna),
        )
        [found] = [other for other in study.get_trials(deepcopy=False) if other.number == trial["number"]]
        if not found.state.is_finished():
            self._trial = optuna.trial.Trial(study, found._trial_id)
            # a trial that goes on from a checkpoint passes steps again
            self._known = set(found.intermediate_values)

    def __call__(self, stage: str, metrics: Mapping[str, float], step: int | None) -> None:
        """Raises: Pruned if the pruner gives the trial up."""
        # step 0: before training, the same for all
        if self._trial is None or stage != PRUNED_STAGE or not step or self.metric not in metrics:
            return
        value = float(metrics[self.metric])
        if step not in self._known:
            self._known.add(step)
            self._trial.report(value, step)
        if self._trial.should_prune():
            raise Pruned(value, step)
