"""From Hydra's sweepers into rapidun.sweep: what the command line checked is handed over, and the exit status back.

Hydra turns every exception of a sweeper into its own message and exit status; ours are kept here until it returns.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.limits import refusing
from rapidun.config.asked import Asked
from rapidun.config.cells import Composed, compose_rows, compose_sweep, sweep_name
from rapidun.report.sweep.budget import check_budget
from rapidun.sweep.folder import SWEEPS
from rapidun.sweep.interrupts import one_interrupt
from rapidun.sweep.run import run_sweep
from rapidun.sweep.tuning.loop import run_tuning


@dataclass
class Handover:
    """What the command line knows before Hydra runs, and what the sweeper leaves behind it."""

    # as typed
    overrides: list[str] = field(default_factory=list)
    composed: Composed | None = None
    extra_dir: Path | None = None
    status: int | None = None
    error: RapidunError | KeyboardInterrupt | None = None
    # of the sweep
    folder: Path | None = None


handover = Handover()


def begin(overrides: Sequence[str], *, extra_dir: Path | None) -> None:
    """Start anew: nothing of an earlier sweep of this process is left."""
    handover.overrides, handover.extra_dir = list(overrides), extra_dir
    handover.composed = handover.status = handover.error = handover.folder = None


def sweep_grid(arguments: Sequence[str], *, launcher_name: str) -> int:
    """Run the grid that the overrides span."""

    def run() -> int:
        composed = handover.composed or compose_sweep(arguments, extra_dir=handover.extra_dir)
        check_budget(composed.cells[0].cfg.sweep.budget)
        typed = handover.overrides or list(arguments)
        name = composed.cells[0].cfg.sweep.name or sweep_name(typed)
        handover.folder = SWEEPS / name
        return run_sweep(
            composed.cells, name=name, overrides=typed, launcher_name=launcher_name,
            notes=[*composed.notes, *(f"warning: {line}" for line in composed.warnings)],
        )  # fmt: skip

    return _keep(run)


def tune(arguments: Sequence[str], *, launcher_name: str, settings: dict[str, Any]) -> int:
    """Let optuna pick the values of the swept keys."""
    typed = handover.overrides or list(arguments)

    def found(folder: Path) -> None:
        handover.folder = folder

    return _keep(
        lambda: run_tuning(
            typed, launcher_name=launcher_name, settings=settings, extra_dir=handover.extra_dir, tell_folder=found
        )
    )


def run_rows(rows: Sequence[Sequence[str]], *, launcher_name: str) -> int:
    """Run cells that another sweeper has picked."""

    def run() -> int:
        asked = Asked(launcher_name)
        cells = compose_rows(rows, extra_dir=handover.extra_dir, asked=asked)
        if asked.faults:
            raise ConfigError(asked.faults)
        check_budget(cells[0].cfg.sweep.budget)
        name = cells[0].cfg.sweep.name or sweep_name([text for row in rows for text in row])
        handover.folder = SWEEPS / name
        notes = [f"warning: {line}" for line in asked.warnings]
        return run_sweep(cells, name=name, overrides=handover.overrides, launcher_name=launcher_name, notes=notes)

    return _keep(run)


def _keep(run: Any) -> int:
    try:
        with one_interrupt(), refusing():
            handover.status = run()
    except (RapidunError, KeyboardInterrupt) as error:
        handover.error = error
        handover.status = 2
    sys.stdout.flush()
    return int(handover.status or 0)
