"""What a search shows and writes: tuning.json, pareto.json and pareto.md, the table at the end, the dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rapidun.base.files import write_json, write_text
from rapidun.base.screen import screen
from rapidun.config.budget import Budget, Place, Verdict
from rapidun.report.statistics import pareto_set
from rapidun.sweep.tuning.search import EXCESSES, STANDS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from rapidun.sweep.tuning.search import Search, Tuning
    from rapidun.sweep.tuning.space import Space

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


def leaders(search: Search, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The Pareto set of the trials that are done; with one direction, the best ones (several only if equal).

    With a budget, of those within it.
    """
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if search.budget is not None:
        done = [trial for trial in done if trial.user_attrs.get(STANDS) == Place.within.value]
    tuning = search.tuning
    return [done[index] for index in pareto_set([trial.values for trial in done], signs=tuning.signs)]


def nearest(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial that misses the budget by least; None where none was measured."""
    missed = {
        trial.number: sum(one for one in trial.user_attrs[EXCESSES] if one > 0)
        for trial in trials
        if trial.user_attrs.get(STANDS) == Place.outside.value
    }
    number = min(missed, key=missed.__getitem__, default=None)
    return next((trial for trial in trials if trial.number == number), None)


def stands(done: Sequence[FrozenTrial]) -> str:
    """`of the done ones 3 within the budget, 2 outside, 1 unknown`."""
    counts = Counter(trial.user_attrs.get(STANDS) for trial in done)
    words = (f"{counts[Place.within.value]} within the budget", f"{counts[Place.outside.value]} outside")
    unknown = len(done) - counts[Place.within.value] - counts[Place.outside.value]
    return f"of the done ones {', '.join([*words, *([f'{unknown} unknown'] if unknown else [])])}"


def write(folder: Path, search: Search, trials: Sequence[FrozenTrial]) -> None:
    """Write tuning.json (every trial), and with several directions pareto.json and pareto.md."""
    best, space, tuning = leaders(search, trials), search.space, search.tuning
    write_json(
        folder / "tuning.json",
        {
            "directions": tuning.directions,
            "n_trials": tuning.n_trials,
            "sampler": tuning.sampler,
            "seed": tuning.seed,
            "pruner": tuning.pruner,
            "budget": None if search.budget is None else search.budget.text,
            "best": [trial.number for trial in best],
            "trials": [_as_json(trial, space, tuning) for trial in trials],
        },
    )
    if len(tuning.directions) > 1:
        done = sum(trial.state.name == "COMPLETE" for trial in trials)
        rows = [_as_json(trial, space, tuning) for trial in best]
        write_json(folder / "pareto.json", {"directions": tuning.directions, "num_done": done, "pareto": rows})
        write_text(folder / "pareto.md", _markdown(search, best, done))


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
        # within, outside or unknown, and by which share of its bound each part of the budget is missed (above 0)
        "budget": trial.user_attrs.get(STANDS),
        "excesses": trial.user_attrs.get(EXCESSES),
        # the failed trial that this one repeats
        "retry_of": trial.user_attrs.get("retry_of"),
    }


def _markdown(search: Search, best: Sequence[FrozenTrial], done: int) -> str:
    space, tuning = search.space, search.tuning
    words = ", ".join(f"{name} ({way})" for name, way in tuning.directions.items())
    heading = ["trial", *tuning.directions, *space.distributions, "cell"]
    among = "" if search.budget is None else f" Among the trials within the budget `{search.budget.text}`."
    lines = [
        f"# Pareto set of {done} trials",
        "",
        f"No other trial is as good or better on all of: {words}.{among}",
        "",
    ]
    lines += [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    for trial in best:
        values = [f"{value:.6g}" for value in trial.values]
        params = [str(value).replace("|", "\\|") for value in space.values(trial.params).values()]
        lines.append(f"| {' | '.join([str(trial.number), *values, *params, str(trial.user_attrs.get('cell'))])} |")
    return "\n".join(lines) + "\n"


def show(search: Search, trials: Sequence[FrozenTrial]) -> None:
    """The best trial, or the Pareto set, as a table; where nothing is within the budget, the trial that is nearest."""
    best, space, tuning = leaders(search, trials), search.space, search.tuning
    if not best:
        near = nearest(trials)
        if search.budget is not None and any(trial.state.name == "COMPLETE" for trial in trials):
            text = f"no trial is within the budget {search.budget.text}"
            if near is not None:
                params = " ".join(f"{key}={value}" for key, value in space.values(near.params).items())
                missed = Verdict(Place.outside, tuple(near.user_attrs[EXCESSES])).text
                text += f"; the nearest, trial {near.number}, misses it by {missed}: {params}"
            screen().print(text, style="yellow", soft_wrap=True)
        return
    several = len(tuning.directions) > 1
    title = ("Pareto set" if several else "Best trial") + (" within the budget" if search.budget is not None else "")
    table = Table(title=title, title_justify="left", title_style="bold",
                  box=box.SIMPLE_HEAD, pad_edge=False)  # fmt: skip
    for name in ("trial", *tuning.directions):
        table.add_column(name, justify="right")
    table.add_column("settings", overflow="fold")
    for trial in best:
        params = "\n".join(f"{key}={value}" for key, value in space.values(trial.params).items())
        table.add_row(str(trial.number), *(f"{value:.4g}" for value in trial.values), params)
    screen().print(table)


def dry_run(
    folder: Path, tuning: Tuning, space: Space, trials: Sequence[FrozenTrial], *, budget: Budget | None = None
) -> str:
    """The text of sweep.dry_run=true."""
    repeated = {trial.user_attrs.get("retry_of") for trial in trials}
    counts = Counter(STATES[trial.state.name] for trial in trials if trial.number not in repeated)
    ended = counts["done"] + counts["pruned"] + counts["failed"]
    there = ", ".join(f"{number} {word}" for word, number in counts.items())
    lines = [f"search {folder}: {tuning.n_trials} trials in all, {there or 'none there yet'}, "
             f"{max(0, tuning.n_trials - ended)} to finish, {tuning.batch_size} at a time"]  # fmt: skip
    lines += ["", "space:", *(f"  {key:<32} {text}" for key, text in space.describe().items())]
    lines += ["", "directions:", *(f"  {name:<32} {way}" for name, way in tuning.directions.items())]
    lines += [] if budget is None else ["", f"budget: {budget.text}"]
    pruner = tuning.pruner if tuning.prune_metric is None else f"{tuning.pruner} by {tuning.prune_metric}"
    lines += ["", f"sampler {tuning.sampler}, seed {tuning.seed}; pruner {pruner}"]
    return "\n".join([*lines, "", "nothing was run: sweep.dry_run=true"])
