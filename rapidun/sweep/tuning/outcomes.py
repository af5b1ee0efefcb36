"""What became of a trial's cell, as the search is to be told."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import ConfigError
from rapidun.base.files import read_json
from rapidun.base.grown import read_grown
from rapidun.base.nested import is_number
from rapidun.config.budget import EXAMPLE, Budget, Place
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import is_result
from rapidun.report.read import number
from rapidun.sweep.folder import read_state
from rapidun.sweep.pruning import PRUNED_STAGE
from rapidun.sweep.tuning.search import EXCESSES, STANDS

EXAMPLES = {
    "hydra.sweeper.directions": "hydra.sweeper.directions={METRIC: minimize}",
    "sweep.budget": f"sweep.budget={EXAMPLE}",
}
EXAMPLES_OF_FACTS = {
    "hydra.sweeper.directions": (
        "hydra.sweeper.directions={extraction_strength_forget: minimize, rougeL_retain: maximize}"
    ),
    "sweep.budget": "sweep.budget=rougeL_retain >= 0.95 * before.rougeL_retain",
}
# what a trial misses each part of its budget by where a number of it was not measured
UNKNOWN = 1e9


class Outcome(NamedTuple):
    """How a cell ended."""

    # optuna's word: COMPLETE, PRUNED, FAIL; None = it has not ended
    state: str | None
    # [num_directions], COMPLETE only
    values: list[float] | None = None
    # why it failed, or where it was pruned
    note: str = ""
    # run again, it would end in the same way
    final: bool = False


def read_outcome(folder: Path, metrics: Iterable[str]) -> Outcome:
    """Look at a cell's run folder.

    Args: metrics: names in result.json, in the order of the directions.
    Raises: ConfigError if result.json has no such metric, naming those that there are.
    """
    status = read_state(folder)
    if status.state == "failed":
        return Outcome("FAIL", note=status.error)
    if status.state == "pruned":
        return Outcome("PRUNED", note=status.error.removeprefix("Pruned: "))
    if status.state != "done":
        return Outcome(None)
    result = read_json(folder / "result.json")
    known = [name for name, value in result.items() if value is None or is_number(value)]
    missing = [name for name in metrics if name not in known]
    if missing:
        raise ConfigError(_no_metric(missing, known, "hydra.sweeper.directions"))
    found = {name: result[name] for name in metrics}
    wrong = {name: value for name, value in found.items() if value is None or not math.isfinite(value)}
    if wrong:
        shown = ", ".join(f"{name}={value}" for name, value in wrong.items())
        return Outcome("FAIL", note=f"need finite numbers in result.json, got {shown}", final=True)
    return Outcome("COMPLETE", [float(value) for value in found.values()])


def judged(folder: Path, budget: Budget | None, *, strict: bool) -> tuple[str, dict[str, Any]]:
    """Where a cell that is done stands within the budget, in words and as the journal keeps it; empty without one.

    Raises: ConfigError if `strict` and result.json lacks a metric that the budget asks for, naming what there is.
    """
    if budget is None:
        return "", {}
    result = read_json(folder / "result.json")
    known = [name for name, value in result.items() if value is None or is_number(value)]
    missing = [name for name in budget.names if name not in known]
    if missing and strict:
        raise ConfigError(_no_metric(missing, known, "sweep.budget"))
    values = {name: number(result.get(name)) for name in budget.names}
    verdict = budget.judge({name: value for name, value in values.items() if value is not None})
    if verdict.place is Place.unknown:
        # samplers need a number: as far outside as a trial can be
        return f"budget unknown: {verdict.why}", {STANDS: verdict.place.value, EXCESSES: [UNKNOWN] * budget.num_parts}
    text = "within budget" if verdict.place is Place.within else f"misses the budget by {verdict.text}"
    return text, {STANDS: verdict.place.value, EXCESSES: list(verdict.excesses)}


def logged_names(folder: Path) -> set[str]:
    """The numbers that the cell's training logged, those a pruner can look at."""
    lines, _ = read_grown(folder / "metrics.jsonl", "stage")
    names = {name for line in lines if line["stage"] == PRUNED_STAGE for name in line}
    return names - {"time", "stage", "step"}


def _no_metric(missing: list[str], known: list[str], setting: str) -> str:
    example = EXAMPLES[setting]
    if of_facts(known):
        example = EXAMPLES_OF_FACTS[setting]
    return (
        f"{setting}: need metrics of result.json, got {', '.join(missing)}; there are "
        f"{', '.join(filter(is_result, known))} (and before.*, retrain.*, seconds.*, peak_memory_gb.*). "
        f"Pass {example!r}"
    )
