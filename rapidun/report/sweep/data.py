"""What the comparison page holds: an index read at once, and blocks of details unpacked when they are looked at."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.report import metrics
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import (
    BEFORE,
    LOG_PANELS,
    METRICS,
    PANELS,
    RETRAIN,
    SHARE_PANELS,
    better_of,
    heading_of,
    kind_of,
    line_words,
    panel_of,
)
from rapidun.report.read import RunRecord, read_run, series
from rapidun.report.run.neighbours import Plan
from rapidun.report.sweep.cells import Cell, natural_value, swept_keys
from rapidun.report.sweep.details import Texts, flat_settings, influence_details, run_details
from rapidun.report.sweep.groups import Group, label_of, shared_settings
from rapidun.report.sweep.summary import Summary

DEFAULT = "(default)"
# of all runs together; what one run shows of each set of prompts is its share of this
ANSWERS_PER_SET = 1800
POINTS = 6000  # of all runs together, per line
TOKEN_PAIRS = 600  # of all runs together; one is about 4 kB


@dataclass(kw_only=True, slots=True)
class PageData:
    """`index` becomes JSON in the page; each block is gzip in base64 under its name."""

    index: dict[str, Any]
    blocks: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.blocks.values()))


def page_data(summary: Summary, *, base: Path, shrink: int = 1) -> PageData:
    """Read every run of the summary and lay out the page's data.

    Args:
        base: folder of the page, which links to files are relative to. shrink: show this many times less of each run.
    """
    cells = summary.cells
    data = PageData(index=page_index(summary, base=base))
    texts, lines = Texts(), Lines(num_points=max(24, min(150, POINTS // max(1, len(cells))) // shrink))
    per_set = max(2, min(30, ANSWERS_PER_SET // max(1, len(cells))) // shrink)
    num_pairs = max(2, min(16, TOKEN_PAIRS // max(1, len(cells)))) // shrink
    influences: dict[str, int | None] = {}
    plans: dict[Path, Plan] = {}
    settings: list[dict[str, str]] = []
    details: list[dict[str, Any] | None] = []
    for number, cell in enumerate(cells):
        run = _read(cell, data)
        if run is None:
            details.append(None)
            settings.append({})
            continue
        lines.add(number, run)
        block = _influence_block(run, texts, influences, data, num_pairs=num_pairs)
        folder = cell.path.parent
        if folder not in plans:
            plans[folder] = Plan(folder)
        details.append(run_details(run, texts, per_set=per_set, influence=block, plan=plans[folder]))
        settings.append(flat_settings(run))
    shared = _shared(settings)
    for number, (found, flat) in enumerate(zip(details, settings, strict=True)):
        if found is not None:
            found["settings"] = {key: value for key, value in flat.items() if key not in shared}
            data.blocks[f"run-{number}"] = pack(found)
    data.blocks |= {"texts": pack(texts.all), "curves": pack(lines.value()), "settings": pack(shared)}
    data.index["perSet"] = per_set
    data.index["curves"] = lines.names()
    return data


def page_index(summary: Summary, *, base: Path) -> dict[str, Any]:
    """Runs, groups, metrics and swept keys: what tables and plots need."""
    cells = summary.cells
    names = _metric_names(cells)
    # first the keys that tell finished runs apart: plots begin with them
    finished = [cell for cell in cells if cell.state == "done"]
    keys = list(dict.fromkeys([*swept_keys(finished), *swept_keys(cells)]))
    groups, members = _groups(summary, keys)
    values = [_values(cell, keys) for cell in cells]
    ids = _ids(cells)
    return {
        "keys": [
            {
                "name": key,
                "values": sorted(
                    {row[place] for row in [*values, *(group["values"] for group in groups)]}, key=natural_value
                ),
            }
            for place, key in enumerate(keys)
        ],
        "metrics": [
            {"name": name, "label": heading_of(name), "kind": kind_of(name).value, "better": better_of(name)}
            for name in names
        ],
        "shown": [names.index(name) for name in metrics.columns(names, chosen={cell.detector for cell in cells})]
        or list(range(min(6, len(names)))),
        "criteria": [names.index(name) for name in metrics.criteria() if name in names],
        "pareto": [names.index(name) for name in summary.pareto_metrics],
        "budget": "" if summary.budget is None else summary.budget.text,
        "runs": [
            {
                "id": ids[number],
                "group": members[number],
                "state": cell.state,
                "budget": _stands(cell),
                "stage": cell.stage,
                "error": cell.error,
                "seed": cell.seed,
                "values": values[number],
                "metrics": [_rounded(cell.metrics.get(name)) for name in names],
                "folder": Path(os.path.relpath(cell.path, base)).as_posix(),
            }
            for number, cell in enumerate(cells)
        ],
        "groups": [
            {
                "label": group["label"],
                "n": group["n"],
                "values": group["values"],
                "best": [names.index(name) for name in group["best"]],
                "pareto": group["pareto"],
                "budget": group["budget"],
                "within": group["within"],
                "metrics": [_interval(group["metrics"].get(name)) for name in names],
            }
            for group in groups
        ],
    }


def pack(value: Any) -> str:
    """JSON, gzip, base64; the same value gives the same text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


class Lines:
    """Training curves of all runs: lines that runs share (one poisoning for many cells) are kept once."""

    def __init__(self, *, num_points: int) -> None:
        self.num_points = num_points
        self._steps: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self._of_run: dict[int, dict[str, int]] = {}
        # whether the evaluated runs forget facts, without triggers
        self._of_facts: set[bool] = set()

    def add(self, number: int, run: RunRecord) -> None:
        if run.after or run.before:
            self._of_facts.add(of_facts({*run.before, *run.after}))
        for stage in ("poison", "unlearning"):
            for name, points in series(run.logged, stage).items():
                if panel_of(name):
                    thinned = thin(points, self.num_points)
                    steps = _number_of(self._steps, json.dumps([_short(step) for step, _ in thinned]))
                    line = json.dumps([steps, [_short(value) for _, value in thinned]])
                    self._of_run.setdefault(number, {})[f"{stage}/{name}"] = _number_of(self._lines, line)

    def names(self) -> list[dict[str, Any]]:
        """Every logged name with its plot and its words, losses of unlearning first."""
        found = dict.fromkeys(name for lines in self._of_run.values() for name in lines)
        order = {panel: place for place, panel in enumerate(PANELS)}
        described = []
        for name in found:
            stage, _, short = name.partition("/")
            panel = panel_of(short) or ""
            words = line_words(short, facts=self._of_facts == {True})
            described.append(
                {"name": name, "stage": stage, "panel": panel, "words": words,
                 "log": panel in LOG_PANELS, "shares": panel in SHARE_PANELS}
            )  # fmt: skip
        return sorted(described, key=lambda one: (one["stage"] != "unlearning", order.get(one["panel"], 99)))

    def value(self) -> dict[str, Any]:
        steps, lines = ([json.loads(text) for text in kept] for kept in (self._steps, self._lines))
        return {"steps": steps, "lines": lines, "runs": self._of_run}


def thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most `limit` points: evenly spaced ones, the first and the last among them."""
    if len(points) <= limit:
        return list(points)
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def _read(cell: Cell, data: PageData) -> RunRecord | None:
    if not cell.path.is_dir():
        return None
    try:
        return read_run(cell.path)
    except ArtifactError as error:
        data.problems.append(str(error))
        return None


def _influence_block(
    run: RunRecord, texts: Texts, known: dict[str, int | None], data: PageData, *, num_pairs: int
) -> int | None:
    """Number of the run's influence block; runs that share the artifact share the block."""
    place = os.path.realpath(run.path / "influence" / "scores.safetensors")
    if place not in known:
        try:
            found = influence_details(run.path, texts, num_pairs=num_pairs)
        except ArtifactError as error:
            data.problems.append(str(error))
            found = None
        packed = None if found is None else pack(found)
        same = next((name for name, block in data.blocks.items() if block == packed), None)
        if packed is not None and same is None:
            same = f"influence-{len(data.blocks)}"
            data.blocks[same] = packed
        known[place] = None if same is None else int(same.rpartition("-")[2])
    return known[place]


def _groups(summary: Summary, keys: Sequence[str]) -> tuple[list[dict[str, Any]], list[int]]:
    """Every setting, those without a finished run last; and the group of each cell."""
    groups: list[dict[str, Any]] = [
        {"label": group.label, "n": group.n, "metrics": group.metrics, "best": summary.best_for(group),
         "pareto": any(group is one for one in summary.pareto), "budget": _stands(group), "within": group.num_within,
         "values": [group.value(key, DEFAULT) for key in keys]}
        for group in summary.groups
    ]  # fmt: skip
    places = {group.name: place for place, group in enumerate(summary.groups)}
    shared = shared_settings([cell.settings for cell in summary.cells])
    members = []
    for cell in summary.cells:
        if cell.group not in places:
            places[cell.group] = len(groups)
            label = cell.path.name if cell.state == "unreadable" else label_of([cell.settings], shared)
            groups.append(
                {"label": label, "n": 0, "metrics": {}, "best": [], "pareto": False, "budget": "", "within": 0,
                 "values": _values(cell, keys)}
            )  # fmt: skip
        members.append(places[cell.group])
    return groups, members


def _stands(one: Cell | Group) -> str:
    """within, outside or unknown; empty without a budget, and for what is not finished."""
    return "" if one.verdict is None else one.verdict.place.value


def _metric_names(cells: Sequence[Cell]) -> list[str]:
    found = {name for cell in cells for name in cell.metrics if not name.startswith((BEFORE, RETRAIN))}
    known = [name for name in METRICS if name in found]
    return known + sorted(found - set(known), key=lambda name: (name.startswith(("seconds", "peak", "num_")), name))


def _values(cell: Cell, keys: Sequence[str]) -> list[str]:
    values = cell.values
    return [values.get(key, DEFAULT) for key in keys]


def _ids(cells: Sequence[Cell]) -> list[str]:
    """Folder names; where two sweeps hold the same name, a number makes them differ."""
    used: dict[str, int] = {}
    ids = []
    for cell in cells:
        name = cell.path.resolve().name
        used[name] = used.get(name, 0) + 1
        ids.append(name if used[name] == 1 else f"{name}~{used[name]}")
    return ids


def _shared(settings: Sequence[dict[str, str]]) -> dict[str, str]:
    known = [flat for flat in settings if flat]
    if not known:
        return {}
    return {key: value for key, value in known[0].items() if all(flat.get(key) == value for flat in known)}


def _interval(interval: Any) -> list[float | None] | None:
    if interval is None:
        return None
    found = [_rounded(interval.mean), _rounded(interval.low), _rounded(interval.high)]
    return found if interval.low is not None else found[:1]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _short(value: float) -> float:
    return int(value) if value == int(value) else float(f"{value:.4g}")


def _number_of(known: dict[str, int], key: str) -> int:
    return known.setdefault(key, len(known))
