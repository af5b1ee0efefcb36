"""What a search shows and writes: tuning.json, pareto.json and pareto.md, the table at the end, the dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from rapidun.base.files import write_json, write_text
from rapidun.report.statistics import pareto_set

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from rapidun.sweep.tuning.search import Tuning
    from rapidun.sweep.tuning.space import Space

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


def leaders(tuning: Tuning, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The Pareto set of the trials that are done; with one direction, the best ones (several only if equal)."""
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return [done[index] for index in pareto_set([trial.values for trial in done], signs=tuning.signs)]


def write(folder: Path, space: Space, tuning: Tuning, trials: Sequence[FrozenTrial]) -> None:
    """Write tuning.json (every trial), and with several directions pareto.json and pareto.md."""
    best = leaders(tuning, trials)
    write_json(
        folder / "tuning.json",
        {
            "directions": tuning.directions,
            "n_trials": tuning.n_trials,
            "sampler": tuning.sampler,
            "seed": tuning.seed,
            "pruner": tuning.pruner,
            "best": [trial.number for trial in best],
            "trials": [_as_json(trial, space, tuning) for trial in trials],
        },
    )
    if len(tuning.directions) > 1:
        done = sum(trial.state.name == "COMPLETE" for trial in trials)
        rows = [_as_json(trial, space, tuning) for trial in best]
        write_json(folder / "pareto.json", {"directions": tuning.directions, "num_done": done, "pareto": rows})
        write_text(folder / "pareto.md", _markdown(space, tuning, best, done))


def _as_json(trial: FrozenTrial, space: Space, tuning: Tuning) -> dict[str, Any]:
    done = trial.state.name == "COMPLETE"
    return {
        "number": trial.number,
        "state": STATES[trial.state.name],
        "values": dict(zip(tuning.directions, trial.values, strict=True)) if done else None,
        "params": space.values(trial.params),
        # the run folder in the sweep folder
        "cell": trial.user_attrs.get("cell"),
        "error": trial.user_attrs.get("error"),
        # the failed trial that this one repeats
        "retry_of": trial.user_attrs.get("retry_of"),
    }


def _markdown(space: Space, tuning: Tuning, best: Sequence[FrozenTrial], done: int) -> str:
    words = ", ".join(f"{name} ({way})" for name, way in tuning.directions.items())
    heading = ["trial", *tuning.directions, *space.distributions, "cell"]
    lines = [f"# Pareto set of {done} trials", "", f"No other trial is as good or better on all of: {words}.", ""]
    lines += [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    for trial in best:
        values = [f"{value:.6g}" for value in trial.values]
        params = [str(value).replace("|", "\\|") for value in space.values(trial.params).values()]
        lines.append(f"| {' | '.join([str(trial.number), *values, *params, str(trial.user_attrs.get('cell'))])} |")
    return "\n".join(lines) + "\n"


def show(space: Space, tuning: Tuning, trials: Sequence[FrozenTrial]) -> None:
    """The best trial, or the Pareto set, as a table."""
    best = leaders(tuning, trials)
    if not best:
        return
    several = len(tuning.directions) > 1
    table = Table(title="Pareto set" if several else "Best trial", title_justify="left", title_style="bold",
                  box=box.SIMPLE_HEAD, pad_edge=False)  # fmt: skip
    for name in ("trial", *tuning.directions):
        table.add_column(name, justify="right")
    table.add_column("settings", overflow="fold")
    for trial in best:
        params = "\n".join(f"{key}={value}" for key, value in space.values(trial.params).items())
        table.add_row(str(trial.number), *(f"{value:.4g}" for value in trial.values), params)
    Console().print(table, markup=False)


def dry_run(folder: Path, tuning: Tuning, space: Space, trials: Sequence[FrozenTrial]) -> str:
    """The text of sweep.dry_run=true."""
    repeated = {trial.user_attrs.get("retry_of") for trial in trials}
    counts = Counter(STATES[trial.state.name] for trial in trials if trial.number not in repeated)
    ended = counts["done"] + counts["pruned"] + counts["failed"]
    there = ", ".join(f"{number} {word}" for word, number in counts.items())
    lines = [f"search {folder}: {tuning.n_trials} trials in all, {there or 'none there yet'}, "
             f"{max(0, tuning.n_trials - ended)} to finish, {tuning.batch_size} at a time"]  # fmt: skip
    lines += ["", "space:", *(f"  {key:<32} {text}" for key, text in space.describe().items())]
    lines += ["", "directions:", *(f"  {name:<32} {way}" for name, way in tuning.directions.items())]
    pruner = tuning.pruner if tuning.prune_metric is None else f"{tuning.pruner} by {tuning.prune_metric}"
    lines += ["", f"sampler {tuning.sampler}, seed {tuning.seed}; pruner {pruner}"]
    return "\n".join([*lines, "", "nothing was run: sweep.dry_run=true"])
