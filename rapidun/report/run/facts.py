"""What stands beside a run's numbers: the facts in its head, its weights' diagnostics, its warnings."""

import os
from collections.abc import Mapping
from typing import Any

from rapidun.report import metrics
from rapidun.report.metrics import Kind
from rapidun.report.read import RunRecord, number

# names of numbers in mapping/diagnostics.json, in plain words; others are shown under their own name
DIAGNOSTICS = {
    "num_rows": "rows",
    "mean": "mean weight",
    "min": "smallest weight",
    "max": "largest weight",
    "effective_sample_size": "effective sample size, in rows",
    "num_distinct": "distinct weights",
    "share_at_w_min": "share of rows at w_min",
    "share_at_w_max": "share of rows at w_max",
    "score_median": "median of the scores",
    "score_scale": "spread of the scores (1.4826 * MAD)",
    "mad_floor_hit": "spread below the MAD floor",
    "split_threshold": "score between the two clusters",
    "split_explained": "share of the scores' variance between two clusters",
    "split_separation": "distance of the two clusters, in standard deviations within them",
    "split_evidence": "evidence for two clusters of the scores",
    "abstained": "no row dropped, since",
    "num_dropped": "rows dropped (weight 0)",
    "share_dropped": "share of rows dropped",
    "num_wrong": "rows that the pack knows to be wrong",
    "num_wrong_dropped": "of these dropped",
    "num_right_dropped": "right rows dropped",
    "auroc_weights": "AUROC of the weights, right rows above wrong ones",
    "auroc_scores": "AUROC of the scores, right rows above wrong ones",
}


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """What stands in the page's head, the known ones only."""
    status = run.status
    model = run.setting("model.path") or run.setting("model.name")
    known = [
        ("seed", run.result.get("seed", run.setting("seed"))),
        ("model", os.path.basename(str(model)) if model else None),
        ("adapter of the model", _start_adapter(run)),
        ("data", run.setting("data.name")),
        ("weights", weighting(run)),
        ("objective", run.setting("unlearning.objective")),
        ("started", status.get("started")),
        ("host", status.get("host")),
        ("job", status.get("job_id")),
        ("restarts", status.get("restarts") or None),
        ("git commit", str(status["git_commit"])[:12] if status.get("git_commit") else None),
    ]
    return [(name, str(value)) for name, value in known if value is not None]


def _start_adapter(run: RunRecord) -> str | None:
    """The adapter over the model that the run started from, and how the unlearned adapter is put on again."""
    adapter = run.setting("model.adapter")
    if not adapter:
        return None
    name, how = os.path.basename(str(adapter).rstrip("/")), run.setting("model.adapter_as")
    if how == "merged":
        return f"{name}, merged into it (start/model)"
    return f"{name}, kept apart: unlearning/adapter stands on both (its README.md)"


def weighting(run: RunRecord) -> str | None:
    """`recommended`, or `recommended, shuffled` for its null hypothesis."""
    method, null = run.setting("mapping.method"), run.setting("mapping.null")
    return None if method is None else f"{method}, {null}" if null not in (None, "none") else str(method)


def diagnostics_rows(diagnostics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, forget, retain) for every number that diagnostics.json keeps per group, and the zeros of top k."""
    groups = [diagnostics.get(group) for group in ("forget", "retain")]
    values = [group if isinstance(group, dict) else {} for group in groups]
    rows = []
    for name in dict.fromkeys([*values[0], *values[1]]):
        cells = [_cell(group.get(name)) for group in values]
        if any(cells):
            rows.append((DIAGNOSTICS.get(name, name.replace("_", " ")), cells[0] or "–", cells[1] or "–"))
    zeros = diagnostics.get("zero_share_after_top_k")
    if isinstance(zeros, dict):
        for what, blocks in (("own", ("ff", "rr")), ("other", ("fr", "rf"))):
            shares = [number(zeros.get(block)) for block in blocks]
            if any(share is not None for share in shares):
                forget, retain = [metrics.format_value(share, Kind.share) for share in shares]
                rows.append((f"share of zeros after top k, scores for the {what} group", forget, retain))
    return rows


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return metrics.format_number(value) if isinstance(value, float) else value if isinstance(value, str) else ""


def run_warnings(run: RunRecord) -> list[str]:
    """Warnings of the mapping and of the other stages, each once."""
    return list(dict.fromkeys([*_listed(run.diagnostics), *_listed(run.status), *run.stage_warnings]))


def _listed(place: Mapping[str, Any]) -> list[str]:
    warnings = place.get("warnings")
    return [str(warning) for warning in warnings] if isinstance(warnings, list) else []
