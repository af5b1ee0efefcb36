"""What the W&B dashboard of a sweep or a run shows, as plain JSON: read from its folder, without W&B and network.

A value that a panel shows is named as its source and its key: `summary:asr_seen`, `config:mapping.tau_f`,
`history:unlearning/loss`, `run:name`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.config.keys import all_keys
from rapidun.pipeline.tracking.lines import OWN, read_lines
from rapidun.pipeline.tracking.wandb.ids import run_ids
from rapidun.report import metrics
from rapidun.report.metrics import better_of
from rapidun.report.read import is_run, read_settings
from rapidun.report.sweep.cells import Cell, read_cell, read_cells, swept_keys

OBJECTIVE = "config:unlearning.objective"
MAX_CURVES = 6


def dashboard_spec(folder: Path, *, project: str | None = None, entity: str | None = None) -> dict[str, Any]:
    """Describe the dashboard of a sweep, or of one run.

    Args: project, entity: in W&B; default: those that the runs were logged to.
    Raises: DataError if the folder is neither.
    """
    if is_run(folder):
        return _of_run(folder, project=project, entity=entity)
    return _of_sweep(folder, project=project, entity=entity)


def _of_run(run_dir: Path, *, project: str | None, entity: str | None) -> dict[str, Any]:
    """One run, found by its id: of the names that runs are given many may have the same."""
    cell, settings = read_cell(run_dir), read_settings(run_dir)
    if not settings:
        raise DataError(f"{run_dir}: need settings.json, which says where the run was logged to; found none")
    tracking = settings.get("tracking", {})
    measured = metrics.main_columns(set(cell.metrics), dashboard=True)
    name = str(settings.get("name") or run_dir.resolve().name)
    sections = [
        {"name": "Results", "panels": [{"kind": "scalar", "metric": f"summary:{one}"} for one in measured]},
        {"name": "Curves", "panels": _curves([run_dir], group=None)},
        {"name": "Weights, influence, answers", "panels": [_media()]},
    ]
    return {
        "title": f"rapidun run {name} {run_dir.resolve().name}",
        "project": project or tracking.get("project") or "rapidun",
        "entity": entity or tracking.get("entity"),
        "cells": 1,
        "filters": {"ID": run_ids(settings, run_dir), "JobType": "cell"},
        "leaderboard": {
            "columns": ["run:displayName", "run:state", *(f"summary:{one}" for one in measured)],
            "order": [],
        },
        "sections": sections,
    }


def _of_sweep(sweep_dir: Path, *, project: str | None, entity: str | None) -> dict[str, Any]:
    cells = [cell for cell in read_cells(sweep_dir) if (cell.path / "overrides.json").is_file()]
    if not cells:
        raise DataError(
            f"{sweep_dir}: need a run folder, or a sweep folder with one for each cell; found no cells in it"
        )
    folders = [cell.path for cell in cells]
    settings = read_settings(folders[0])
    tracking = settings.get("tracking", {})
    measured = metrics.main_columns({name for cell in cells for name in cell.metrics}, dashboard=True)
    swept = swept_values(cells)
    name = str(settings.get("sweep", {}).get("name") or sweep_dir.resolve().name)
    columns = ["run:displayName", "run:state", *swept, *(f"summary:{name}" for name in measured)]
    return {
        "title": f"rapidun sweep {name}",
        "project": project or tracking.get("project") or "rapidun",
        "entity": entity or tracking.get("entity"),
        "cells": len(cells),
        "filters": {"Group": name, "JobType": "cell"},
        "leaderboard": {
            "columns": columns,
            "order": [{"by": f"summary:{name}", "ascending": better_of(name) <= 0} for name in measured[:3]],
        },
        "sections": [
            {"name": "Results", "panels": _results(measured, swept)},
            {"name": "Settings against results", "panels": _settings_panels(measured, swept)},
            {"name": "Curves by objective", "panels": _curves(folders)},
            {"name": "Runs side by side", "panels": [{"kind": "comparer"}, _media()]},
        ],
    }


def swept_values(cells: Sequence[Cell]) -> list[str]:
    """Where the cells differ, `config:mapping.tau_f`; a group's choice is `config:choices.mapping`."""
    known = set(all_keys())
    sections = {name for name in known if any(key.startswith(f"{name}.") for key in known)}
    keys = swept_keys(cells, seed=True)
    return [f"config:{key}" if key in known - sections else f"config:choices.{key}" for key in keys]


def curve_names(cells: list[Path], stage: str) -> list[str]:
    """What a stage logs step by step, `loss` first."""
    for cell in cells:
        lines = [row for row in read_lines(cell / "metrics.jsonl") if row["stage"] == stage and row["step"] is not None]
        names = dict.fromkeys(name for row in lines for name in row if name not in OWN)
        if names:
            return sorted(names, key=lambda name: (name != "loss", "loss" not in name, name))[:MAX_CURVES]
    return []


def _results(measured: list[str], swept: list[str]) -> list[dict[str, Any]]:
    first, *axes = metrics.pareto_axes()
    x = next((name for name in first if name in measured), first[0])
    # of what stands for an axis the last one, which every run has, first
    ys = [name for names in axes for name in reversed(names)]
    panels: list[dict[str, Any]] = [
        {
            "kind": "scatter",
            "title": f"Pareto: {x} against {y}",
            "x": f"summary:{x}",
            "y": f"summary:{y}",
            "colour": OBJECTIVE,
        }
        for y in ys
        if x in measured and y in measured
    ]
    group = next((key for key in swept if key != "config:seed"), OBJECTIVE)
    panels += [
        {"kind": "bar", "title": f"{name} by {group.partition(':')[2]}", "metric": f"summary:{name}", "group": group}
        for name in measured[:4]
    ]
    return panels


def _settings_panels(measured: list[str], swept: list[str]) -> list[dict[str, Any]]:
    if not measured:
        return []
    shown = measured[:4]
    inverted = [f"summary:{name}" for name in shown if better_of(name) < 0]
    return [
        {
            "kind": "parallel",
            "title": "Settings and results; better is up",
            "columns": [*swept, *(f"summary:{name}" for name in shown)],
            "inverted": inverted,
        },
        {"kind": "importance", "metric": f"summary:{measured[0]}"},
    ]


def _curves(cells: list[Path], *, group: str | None = OBJECTIVE) -> list[dict[str, Any]]:
    return [
        {
            "kind": "line",
            "title": f"{stage}: {name}",
            "x": f"history:{stage}/step",
            "y": [f"history:{stage}/{name}"],
            "group": group,
        }
        for stage, names in (("unlearning", curve_names(cells, "unlearning")), ("poison", curve_names(cells, "poison")))
        for name in names
    ]


def _media() -> dict[str, Any]:
    keys = ["mapping/weights_forget", "mapping/weights_retain", "influence/heat_map", "evaluation/generations"]
    return {"kind": "media", "keys": [f"history:{key}" for key in keys]}
