"""What the W&B dashboard of a sweep shows, as plain JSON: read from the sweep's folder, without W&B and network.

A value that a panel shows is named as its source and its key: `summary:asr_seen`, `config:mapping.tau_f`,
`history:unlearning/loss`, `run:name`.
"""

from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.files import read_json
from rapidun.config.keys import all_keys
from rapidun.pipeline.tracking.lines import OWN, read_lines

# shown where the sweep measured them, the first ones first; True: smaller is better
RESULTS = {
    "asr_seen": True,
    "asr_ood": True,
    "asr_unseen_family": True,
    "false_trigger_rate": True,
    "ppl_clean": True,
    "exact_match_clean": False,
    "rougeL_clean": False,
    "rougeL_recovered": False,
}
# what a sweep trades against each other
PARETO = (("asr_seen", "ppl_clean"), ("asr_seen", "rougeL_clean"), ("asr_seen", "exact_match_clean"))
OBJECTIVE = "config:unlearning.objective"
MAX_CURVES = 6


def dashboard_spec(sweep_dir: Path, *, project: str | None = None, entity: str | None = None) -> dict[str, Any]:
    """Describe the dashboard of a sweep.

    Args: project, entity: in W&B; default: those that the cells were logged to.
    Raises: DataError if the folder holds no cells.
    """
    cells = cell_folders(sweep_dir)
    if not cells:
        raise DataError(f"{sweep_dir}: need a sweep folder, with a run folder for each cell; found no cells in it")
    tracking = _settings(cells[0]).get("tracking", {})
    results = [_object(cell / "result.json") for cell in cells]
    measured = [name for name in RESULTS if any(name in result for result in results)]
    if not measured:
        measured = sorted({name for result in results for name in result if _is_metric(name)})[:6]
    swept = swept_keys(cells)
    name = str(_settings(cells[0]).get("sweep", {}).get("name") or sweep_dir.resolve().name)
    columns = ["run:displayName", "run:state", *swept, *(f"summary:{name}" for name in measured)]
    return {
        "title": f"rapidun sweep {name}",
        "project": project or tracking.get("project") or "rapidun",
        "entity": entity or tracking.get("entity"),
        "cells": len(cells),
        "filters": {"Group": name, "JobType": "cell"},
        "leaderboard": {
            "columns": columns,
            "order": [{"by": f"summary:{name}", "ascending": RESULTS.get(name, True)} for name in measured[:3]],
        },
        "sections": [
            {"name": "Results", "panels": _results(measured, swept)},
            {"name": "Settings against results", "panels": _settings_panels(measured, swept)},
            {"name": "Curves by objective", "panels": _curves(cells)},
            {"name": "Runs side by side", "panels": [{"kind": "comparer"}, _media()]},
        ],
    }


def cell_folders(sweep_dir: Path) -> list[Path]:
    """The run folders of a sweep's cells; shared artifacts' folders stand a level deeper."""
    if not sweep_dir.is_dir():
        return []
    return sorted(path.parent for path in sweep_dir.glob("*/overrides.json"))


def swept_keys(cells: list[Path]) -> list[str]:
    """Where the cells differ, `config:mapping.tau_f`; a group's choice is `config:choices.mapping`."""
    known = set(all_keys())
    sections = {name for name in known if any(key.startswith(f"{name}.") for key in known)}
    rows = []
    for cell in cells:
        pairs = [str(text).partition("=") for text in _object(cell / "overrides.json").get("task", [])]
        rows.append({key.lstrip("+~"): value for key, _, value in pairs})
    keys = dict.fromkeys(key for row in rows for key in row)
    differing = [key for key in keys if len({row.get(key) for row in rows}) > 1]
    named = [key if key in known and key not in sections else f"choices.{key}" for key in differing]
    return [f"config:{key}" for key in named]


def curve_names(cells: list[Path], stage: str) -> list[str]:
    """What a stage logs step by step, `loss` first."""
    for cell in cells:
        lines = [row for row in read_lines(cell / "metrics.jsonl") if row["stage"] == stage and row["step"] is not None]
        names = dict.fromkeys(name for row in lines for name in row if name not in OWN)
        if names:
            return sorted(names, key=lambda name: (name != "loss", "loss" not in name, name))[:MAX_CURVES]
    return []


def _results(measured: list[str], swept: list[str]) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = [
        {
            "kind": "scatter",
            "title": f"Pareto: {x} against {y}",
            "x": f"summary:{x}",
            "y": f"summary:{y}",
            "colour": OBJECTIVE,
        }
        for x, y in PARETO
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
    inverted = [f"summary:{name}" for name in shown if RESULTS.get(name, False)]
    return [
        {
            "kind": "parallel",
            "title": "Settings and results; better is up",
            "columns": [*swept, *(f"summary:{name}" for name in shown)],
            "inverted": inverted,
        },
        {"kind": "importance", "metric": f"summary:{measured[0]}"},
    ]


def _curves(cells: list[Path]) -> list[dict[str, Any]]:
    return [
        {
            "kind": "line",
            "title": f"{stage}: {name}",
            "x": f"history:{stage}/step",
            "y": [f"history:{stage}/{name}"],
            "group": OBJECTIVE,
        }
        for stage, names in (("unlearning", curve_names(cells, "unlearning")), ("poison", curve_names(cells, "poison")))
        for name in names
    ]


def _media() -> dict[str, Any]:
    keys = ["mapping/weights_forget", "mapping/weights_retain", "influence/heat_map", "evaluation/generations"]
    return {"kind": "media", "keys": [f"history:{key}" for key in keys]}


def _settings(cell: Path) -> dict[str, Any]:
    return _object(cell / "settings.json")


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _is_metric(name: str) -> bool:
    return name not in ("name", "seed") and not name.startswith(("before.", "seconds.", "peak_memory_gb."))
