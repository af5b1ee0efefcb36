"""What became of a trial's cell, as the search is to be told."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import ConfigError
from rapidun.base.files import read_json, read_jsonl
from rapidun.base.nested import is_number
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import is_result
from rapidun.sweep.folder import read_state
from rapidun.sweep.pruning import PRUNED_STAGE


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
        raise ConfigError(_no_metric(missing, known))
    found = {name: result[name] for name in metrics}
    wrong = {name: value for name, value in found.items() if value is None or not math.isfinite(value)}
    if wrong:
        shown = ", ".join(f"{name}={value}" for name, value in wrong.items())
        return Outcome("FAIL", note=f"need finite numbers in result.json, got {shown}", final=True)
    return Outcome("COMPLETE", [float(value) for value in found.values()])


def logged_names(folder: Path) -> set[str]:
    """The numbers that the cell's training logged, those a pruner can look at."""
    path = folder / "metrics.jsonl"
    lines = read_jsonl(path) if path.is_file() else []
    names = {name for line in lines if line["stage"] == PRUNED_STAGE for name in line}
    return names - {"time", "stage", "step"}


def _no_metric(missing: list[str], known: list[str]) -> str:
    example = (
        "{extraction_strength_forget: minimize, rougeL_retain: maximize}" if of_facts(known) else "{METRIC: minimize}"
    )
    return (
        f"hydra.sweeper.directions: need metrics of result.json, got {', '.join(missing)}; there are "
        f"{', '.join(filter(is_result, known))} (and before.*, seconds.*, peak_memory_gb.*). Pass "
        f"'hydra.sweeper.directions={example}'"
    )
