"""Influence-guided unlearning in language models, from Python: `run`, `sweep`, `compose`, `load`.

    import rapidun
    result = rapidun.run(["mapping=uniform"], seed=1)   # what `rapidun mapping=uniform seed=1` does
    result.metrics["asr_seen"]
    found = rapidun.sweep(["mapping=rapidun,uniform"], seed=range(3))
    found.to_frame()
    rapidun.load("outputs/runs/2026-12-01_12-00-00_run").metrics

What the caller can mend is a RapidunError: ConfigError, DataError, ModelError, MachineError, ArtifactError.
`forget_terms` and `retain_terms` are the objectives as pure functions of logits and labels. `objective`, `weighting`,
`metric`, `reader` and `launcher` are for files that extend rapidun (docs/extending.md), which `extend` loads.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ArtifactError, ConfigError, DataError, MachineError, ModelError, RapidunError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from rapidun.config.extensions import launcher, metric, objective, reader, weighting
    from rapidun.config.run import RunConfig
    from rapidun.pipeline.run import Result
    from rapidun.report.loaded import Loaded, LoadedRun, Sweep

    __version__: str

__all__ = [
    "ArtifactError", "ConfigError", "DataError", "Loaded", "LoadedRun", "MachineError", "ModelError", "RapidunError",
    "Result", "RunConfig", "Sweep", "__version__", "compose", "extend", "forget_terms", "launcher", "load", "metric",
    "objective", "reader", "retain_terms", "run", "sweep", "weighting",
]  # fmt: skip
# brought when they are first asked for, so that importing rapidun takes no time
_LATE = {
    "Loaded": "rapidun.report.loaded",
    "LoadedRun": "rapidun.report.loaded",
    "Result": "rapidun.pipeline.run",
    "RunConfig": "rapidun.config.run",
    "Sweep": "rapidun.report.loaded",
    "launcher": "rapidun.config.extensions",
    "metric": "rapidun.config.extensions",
    "objective": "rapidun.config.extensions",
    "reader": "rapidun.config.extensions",
    "weighting": "rapidun.config.extensions",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # late, so that importing rapidun takes no time
        from rapidun.cli.help import version

        return version()
    if name not in _LATE:
        raise AttributeError(f"module 'rapidun' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def extend(file: str | Path) -> None:
    """Load a file that adds objectives, weightings, metrics, readers or launchers: what `--extend FILE` does.

    Args: file: of Python; it is run as a module of its own, once.
    Raises: ConfigError for a file that is not there or cannot be run, or that adds a name which is taken.
    """
    # late, so that importing rapidun takes no time
    from rapidun.cli import door

    door.extend(file)


def compose(overrides: Sequence[str] = (), **settings: Any) -> RunConfig:
    """Compose and check a configuration; nothing is run.

    Args:
        overrides: as on the command line, `["mapping=uniform", "seed=1"]`.
        settings: the same in Python: `seed=1`, `unlearning={"learning_rate": 1e-3}`, `**{"mapping.tau_f": 0.5}`.
            A group's file is chosen by its name, `mapping="uniform"`. None is null, a list is a list.
    Returns: the configuration, every field typed; it may be changed and handed to `run`.
    Raises: ConfigError with every fault: unknown keys, values of another type or out of range, text in place of a list.
    """
    # late, so that importing rapidun takes no time
    from rapidun.cli import door

    return door.compose(overrides, settings)


def run(overrides: Sequence[str] | RunConfig = (), **settings: Any) -> Result:
    """Run the pipeline in this process; what the store has is reused, as on the command line.

    Args:
        overrides: as on the command line, `["mapping=uniform", "seed=1"]`; or a configuration that `compose` gave.
        settings: see `compose`; none beside a configuration.
    Returns: `.metrics` (result.json), `.run_dir`, `.weights`, `.scores`; a notebook shows its table and curves.
    Raises: ConfigError with every fault of the settings, before anything runs; DataError, ModelError, ArtifactError and
        MachineError for what else the caller can mend; any other error is a failed stage. All leave status.json in the
        run folder, and the same call goes on from there.
    """
    # late, so that importing rapidun takes no time
    from rapidun.cli import door

    return door.run(overrides, settings)


def sweep(overrides: Sequence[str] = (), **settings: Any) -> Sweep:
    """Run a sweep as `rapidun -m` does: every combination, what is done already is left, cells are started by
    `hydra/launcher=...`; it returns when they have ended.

    Args:
        overrides: as on the command line, `["mapping=rapidun,uniform", "seed=range(3)"]`.
        settings: see `compose`; a tuple or a range is swept over, `seed=(0, 1, 2)`.
    Returns: what `load` gives of the sweep's folder: `.to_frame()`, `.best`, `.cells`, `.failures` (a cell that failed
        raises nothing); a notebook shows its leaderboard.
    Raises: ConfigError with every fault, before anything runs; RapidunError for what else the caller can mend;
        KeyboardInterrupt where Ctrl-C (the notebook's stop) ended it. The same call goes on from there.
    """
    # late, so that importing rapidun takes no time
    from rapidun.cli import door

    return door.sweep(overrides, settings)


def load(folder: str | Path) -> LoadedRun | Sweep:
    """A run folder or a sweep folder, read back: `rapidun.load("outputs/sweeps/tau").to_frame()`.

    Args: folder: of a run (with status.json or result.json), or with such folders in it.
    Returns: a LoadedRun (`.metrics`, `.settings`, `.weights`, `.scores`) or a Sweep (`.best`, `.cells`, `.failures`);
        both have `.path`, `.summary()` and `.to_frame()`.
    Raises: DataError if it is neither.
    """
    # late, so that importing rapidun takes no time
    from rapidun.report import loaded

    return loaded.load(folder)


def forget_terms(
    name: str,
    logits: Tensor,
    labels: Tensor,
    *,
    ref_logits: Tensor | None = None,
    clean_logits: Tensor | None = None,
    clean_labels: Tensor | None = None,
    clean_ref_logits: Tensor | None = None,
    hidden: Tensor | None = None,
    ref_hidden: Tensor | None = None,
    **hyperparameters: Any,
) -> Tensor:
    """The forget term of every row under an objective, [B]: `rapidun.forget_terms("simnpo", logits, labels, beta=2.5)`.

    Args:
        name: of the objective, as in `unlearning.objective`. logits: [B, T, V] of the model on the rows to forget.
        labels: [B, T], -100 where a token does not count. ref_logits: of the model before unlearning. clean_*: of the
            clean answers to the same prompts. hidden, ref_hidden: [B, T, D] of the layer that the objective steers.
        hyperparameters: of the objective, by their names in `unlearning.<name>.*`; defaults where they are left out.
    Returns: [B] float32, to be minimised, with its gradient.
    Raises: ValueError for an unknown name, a tensor that the objective needs and did not get, shapes that do not fit,
        hyperparameters that it does not have. More: rapidun.stages.unlearning.objectives.terms.
    """
    # late: brings torch
    from rapidun.stages.unlearning.objectives import terms

    return terms.forget_terms(
        name,
        logits,
        labels,
        ref_logits=ref_logits,
        clean_logits=clean_logits,
        clean_labels=clean_labels,
        clean_ref_logits=clean_ref_logits,
        hidden=hidden,
        ref_hidden=ref_hidden,
        **hyperparameters,
    )


def retain_terms(
    kind: str,
    logits: Tensor,
    labels: Tensor,
    *,
    ref_logits: Tensor | None = None,
    hidden: Tensor | None = None,
    ref_hidden: Tensor | None = None,
) -> Tensor:
    """The retain term of every row, [B]: `rapidun.retain_terms("kl", logits, labels, ref_logits=...)`.

    Args, Raises: as `forget_terms`; kind: as in `unlearning.retain_loss`.
    """
    # late: brings torch
    from rapidun.stages.unlearning.objectives import terms

    return terms.retain_terms(kind, logits, labels, ref_logits=ref_logits, hidden=hidden, ref_hidden=ref_hidden)


class _CalledSweep(ModuleType):
    """The subpackage rapidun.sweep, which is imported when a sweep runs: called, it is the function of its name."""

    __call__ = staticmethod(sweep)


class _Package(ModuleType):
    """Python puts a subpackage into its package under its name, and `sweep` would be a function no more."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "sweep" and isinstance(value, ModuleType):
            value.__class__ = _CalledSweep
            value.__doc__ = sweep.__doc__
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
