"""Reads a run folder into plain values: an absent file becomes an empty one, a damaged file is an error."""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, read_jsonl
from rapidun.base.grown import read_grown
from rapidun.base.nested import at, is_number
from rapidun.base.redact import hide, hide_entries

BLOCKS = ("ff", "fr", "rf", "rr")
# any of these makes a folder a run folder
RUN_MARKS = ("status.json", "result.json", "config.yaml")


class Influence(NamedTuple):
    """The four blocks of one run; rows = training examples, columns = queries."""

    blocks: dict[str, Any]  # "ff" [nF, qF], "fr" [nF, qR], "rf" [nR, qF], "rr" [nR, qR] float32 arrays
    forget_ids: list[str]
    retain_ids: list[str]
    # of the columns, where the queries are not the training rows
    query_ids: tuple[list[str], list[str]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """What one stage cost; a cached stage took its result from the store."""

    stage: str
    seconds: float | None
    peak_memory_gb: float | None
    cached: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Everything of a run folder that a report shows. Empty values stand for absent files."""

    path: Path
    settings: dict[str, Any]
    result: dict[str, Any]
    status: dict[str, Any]
    before: dict[str, float]
    after: dict[str, float]
    generations: list[dict[str, Any]]
    logged: list[dict[str, Any]]
    diagnostics: dict[str, Any]
    forget_weights: list[float]
    retain_weights: list[float]
    # a line for each row that has a score: group, id, score, weight, and is_wrong where the pack knows
    row_scores: list[dict[str, Any]]
    manifest: dict[str, Any]
    stage_warnings: list[str]
    command: str
    config: str
    # evaluation/detectors.json: how good each detector is on known answers, and which is the run's
    detectors: dict[str, Any] = field(default_factory=dict)
    # evaluation/missing.json: before and after, why a metric is not there
    missing: dict[str, Any] = field(default_factory=dict)

    @property
    def costs(self) -> list[StageCost]:
        return stage_costs(self.status, self.result)

    @property
    def name(self) -> str:
        return str(self.result.get("name") or self.settings.get("name") or self.path.name)

    @property
    def error(self) -> str:
        """First line that names the error of a failed run; empty where it did not fail."""
        return error_line(self.status.get("error"))

    def setting(self, key: str) -> Any:
        """One setting by its dotted name, `mapping.tau_f`; None where it is not recorded."""
        return at(self.settings, key)


def is_run(path: Path) -> bool:
    return any((path / mark).is_file() for mark in RUN_MARKS)


def read_run(path: Path) -> RunRecord:
    """Read the small files of a run folder; influence and data rows have readers of their own.

    Raises: ArtifactError if a file is there but damaged, naming it.
    """
    return RunRecord(
        path=path,
        settings=read_settings(path),
        result=read_object(path / "result.json"),
        status=hide(read_object(path / "status.json")),
        before=_read_numbers(path / "evaluation" / "before.json"),
        after=_read_numbers(path / "evaluation" / "after.json"),
        generations=_read_rows(path / "evaluation" / "generations.jsonl"),
        logged=_read_log(path),
        diagnostics=read_object(path / "mapping" / "diagnostics.json"),
        forget_weights=_read_weights(path / "mapping" / "forget_weights.jsonl"),
        retain_weights=_read_weights(path / "mapping" / "retain_weights.jsonl"),
        row_scores=_read_rows(path / "mapping" / "row_scores.jsonl"),
        manifest=read_object(path / "data" / "manifest.json"),
        stage_warnings=_read_warnings(path),
        command=hide_entries(_read_text(path / "command.txt").strip()),
        config=hide_entries(_read_text(path / "config.yaml")),
        detectors=read_object(path / "evaluation" / "detectors.json"),
        missing=read_object(path / "evaluation" / "missing.json"),
    )


def read_status_and_result(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two small files that say how a run ended; empty where absent.

    Raises: ArtifactError if one is damaged.
    """
    status = read_object(path / "status.json")
    if not is_status(status):
        raise ArtifactError(f"{path / 'status.json'}: need what a run says of itself, got JSON of another shape")
    return hide(status), read_object(path / "result.json")


def is_status(value: object) -> bool:
    """Whether a status.json has the shape that a run gives it, as far as it goes."""
    if not isinstance(value, dict):
        return False
    stages = value.get("stages", {})
    return (
        isinstance(value.get("state", ""), str)
        and all(value.get(key) is None or isinstance(value[key], str) for key in ("stage", "job", "git_commit"))
        and isinstance(value.get("error") or "", dict | str)
        and is_number(value.get("restarts", 0))
        and isinstance(stages, dict)
        and all(map(_is_stage, stages.values()))
    )


def _is_stage(value: object) -> bool:
    return (
        isinstance(value, dict)
        and is_number(value.get("seconds", 0))
        and isinstance(value.get("artifacts", {}), dict)
        and all(isinstance(id, str) for id in value.get("artifacts", {}).values())
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The resolved settings of a run folder, nested, without secrets; empty where absent.

    Raises: ArtifactError if the file is damaged.
    """
    return hide(read_object(path / "settings.json"))


def read_influence(path: Path) -> Influence | None:
    """Read the four score blocks of a run folder; None where the influence stage has not run.

    Raises: ArtifactError if the scores are damaged or do not fit their ids.
    """
    scores, ids_file = path / "influence" / "scores.safetensors", path / "influence" / "ids.json"
    if not scores.is_file() or not ids_file.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    ids = read_object(ids_file)
    forget, retain = [list(map(str, ids.get(group, []))) for group in ("forget", "retain")]
    try:
        with safe_open(str(scores), framework="numpy") as tensors:
            blocks = {name: tensors.get_tensor(name) for name in BLOCKS}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ArtifactError(f"{scores}: need the tensors {', '.join(BLOCKS)}, got {error}") from None
    asked = ids.get("queries")
    queries = None if asked is None else (list(map(str, asked["forget"])), list(map(str, asked["retain"])))
    sizes = {"f": len(forget), "r": len(retain)}
    columns = sizes if queries is None else {"f": len(queries[0]), "r": len(queries[1])}
    for name, block in blocks.items():
        need = (sizes[name[0]], columns[name[1]])
        if block.shape != need:
            raise ArtifactError(f"{scores}: need {name} of shape {need} as in {ids_file.name}, got {block.shape}")
    return Influence(blocks, forget, retain, queries)


def read_instructions(path: Path, ids: Iterable[str]) -> dict[str, str]:
    """Instruction of each id that stands in data/forget.jsonl or data/retain.jsonl of a run folder."""
    return {name: question for name, (question, _) in read_texts(path, ids).items()}


def read_texts(path: Path, ids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Instruction and response of each id that stands in data/forget.jsonl or data/retain.jsonl of a run folder."""
    wanted = set(ids)
    found = {}
    for split in ("forget", "retain"):
        for row in _read_rows(path / "data" / f"{split}.jsonl"):
            if str(row.get("id")) in wanted:
                answer = row.get("response_poisoned") if split == "forget" else None
                found[str(row["id"])] = (str(row.get("instruction", "")), str(answer or row.get("response", "")))
    return found


def read_weighted_rows(path: Path, group: str) -> list[tuple[str, float]]:
    """(id, weight) of every row of one group, `forget` or `retain`, of a run folder; empty where absent."""
    rows = _read_rows(path / "mapping" / f"{group}_weights.jsonl")
    pairs = [(str(row.get("id", "")), number(row.get("weight"))) for row in rows]
    return [(name, weight) for name, weight in pairs if weight is not None]


def stage_costs(status: dict[str, Any], result: dict[str, Any]) -> list[StageCost]:
    """Costs by stage in the order of status.json; a run without it falls back on result.json."""
    stages = status.get("stages")
    if not isinstance(stages, dict) or not stages:
        names = [key.removeprefix("seconds.") for key in result if key.startswith("seconds.")]
        stages = {name: {key: result.get(f"{key}.{name}") for key in ("seconds", "peak_memory_gb")} for name in names}
    return [
        StageCost(
            stage=name,
            seconds=number(cost.get("seconds")),
            peak_memory_gb=number(cost.get("peak_memory_gb")),
            cached=bool(cost.get("cached", False)),
        )
        for name, cost in stages.items()
        if isinstance(cost, dict)
    ]


def number(value: object) -> float | None:
    """A finite number as float, else None; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def error_line(error: object) -> str:
    """One line from status.json's error: {"message", "traceback"}, or a text that may be a traceback."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("traceback")
    lines = [line for line in str(error or "").split("\n") if line.strip()]
    if lines and lines[0].startswith("Traceback"):
        # frames are indented; the exception is the first line after them that is not
        lines = [line for line in lines[1:] if not line[0].isspace()] or lines
    return lines[0].strip() if lines else ""


def read_overrides(path: Path) -> list[str]:
    """Overrides of a sweep cell, `["mapping.tau_f=0.3", ...]`; empty where the file is absent."""
    task = read_object(path / "overrides.json").get("task", [])
    return [hide_entries(str(override)) for override in task] if isinstance(task, list) else []


def read_typed(path: Path) -> list[str]:
    """The overrides in command.txt of a run, `python sweep.py key=value ...`; empty where absent."""
    try:
        words = shlex.split(_read_text(path / "command.txt"))
    except ValueError:
        return []
    return [hide_entries(word) for word in words if "=" in word and not word.startswith("-")]


def series(logged: Sequence[dict[str, Any]], stage: str) -> dict[str, list[tuple[float, float]]]:
    """Every number that a stage logged with a step: name -> [(step, value)], by step.

    A step logged twice (a run that was killed and resumed) keeps its last value.
    """
    found: dict[str, dict[float, float]] = {}
    for row in logged:
        step = number(row.get("step"))
        if row.get("stage") != stage or step is None:
            continue
        for name, value in row.items():
            value = None if name in ("time", "step") else number(value)
            if value is not None:
                short = name.removeprefix(f"{stage}/").removeprefix(f"{stage}.")
                found.setdefault(short, {})[step] = value
    return {name: sorted(points.items()) for name, points in found.items()}


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object, empty where there is none. Raises: ArtifactError if it is damaged."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: need a JSON object, got {type(value).__name__}")
    return value


def _read_numbers(path: Path) -> dict[str, float]:
    numbers = {name: number(value) for name, value in read_object(path).items()}
    return {name: value for name, value in numbers.items() if value is not None}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(path) if isinstance(row, dict)] if path.is_file() else []


def _read_weights(path: Path) -> list[float]:
    weights = [number(row.get("weight")) for row in _read_rows(path)]
    return [weight for weight in weights if weight is not None]


def _read_warnings(path: Path) -> list[str]:
    """Warnings that the stages left in their artifacts' manifests."""
    found = []
    for stage in ("data", "influence", "mapping", "unlearning"):
        result = read_object(path / stage / "manifest.json").get("result")
        warnings = result.get("warnings") if isinstance(result, dict) else None
        found += [str(warning) for warning in warnings] if isinstance(warnings, list) else []
    return found


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_log(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, a file that grows while the run goes on: its last line may be cut by a kill.

    Where unlearning came from the store, its curve stands in the artifact's history.json.
    """
    rows, _ = read_grown(path / "metrics.jsonl")
    history = path / "unlearning" / "history.json"
    if not any(row.get("stage") == "unlearning" and row.get("step") is not None for row in rows) and history.is_file():
        entries = read_json(history)
        rows += [{"stage": "unlearning", **row} for row in entries if isinstance(row, dict)]
    return rows
