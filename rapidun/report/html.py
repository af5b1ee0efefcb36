"""report.html: one self-contained page per run, and sweep.html, the index of a sweep. No script, no network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.files import write_text
from rapidun.report import plots, tables
from rapidun.report.findings import key_findings
from rapidun.report.pairs import BLOCK_TITLES, top_pairs
from rapidun.report.read import Influence, RunRecord, number, read_influence, read_instructions, read_run, series
from rapidun.report.samples import choose_samples, mark_prompt
from rapidun.report.statistics import effective_sample_size, wilson_interval
from rapidun.report.tables import Kind, MetricRow

if TYPE_CHECKING:
    from rapidun.report.summary import Summary

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
}
# the numbers at the top of the page; of each line the first that the run has
TILES = (
    ("asr_seen", "asr_seen_likelihood"),
    ("exact_match_recovered", "rougeL_recovered"),
    ("exact_match_clean", "rougeL_clean"),
    ("ppl_clean",),
)


# what a run may lack: "This run has no ..."
ABSENT = {
    "groups": "evaluation to compare",
    "families": "shares per trigger family",
    "curves": "training curves",
    "weights": "loss weights",
    "influence": "influence scores",
    "sets": "sample answers",
    "costs": "finished stage",
}


def write_run_report(run_dir: Path) -> Path:
    """Write report.html into a run folder from the files that are there; what is absent is said to be absent.

    Returns: the path of report.html.
    Raises: ArtifactError if a file of the run is damaged.
    """
    run = read_run(run_dir)
    influence = read_influence(run_dir)
    shown = {
        "groups": _grouped(tables.before_after_rows(run.before, run.after)),
        "families": _family_plots(run),
        "curves": _curves(run),
        "weights": _weights(run),
        "influence": None if influence is None else _influence(run, influence),
        "sets": choose_samples(run.generations),
        "costs": run.costs,
    }
    page = _environment().get_template("run.html.j2").render(
        **shown,
        absent=[what for name, what in ABSENT.items() if not shown[name]],
        run=run,
        facts=_facts(run),
        findings=[_unbroken(sentence) for sentence in key_findings(run)],
        tiles=_tiles(run),
        interval=_interval_text,
        diagnostics=_diagnostics(run.diagnostics),
        warnings=_warnings(run),
        counts=run.manifest.get("counts") or (run.manifest.get("result") or {}).get("counts") or {},
        total_seconds=sum(cost.seconds or 0.0 for cost in run.costs),
    )  # fmt: skip
    path = run_dir / "report.html"
    write_text(path, page)
    return path


def write_sweep_index(sweep_dir: Path, summary: Summary) -> Path:
    """Write sweep.html into a sweep folder: the summary's tables, and a link to each cell's report.

    Returns: the path of sweep.html.
    """
    page = _environment().get_template("sweep.html.j2").render(
        summary=summary,
        name=sweep_dir.resolve().name,
        columns=summary.main_metrics(),
        reports={
            cell.path.name: f"{cell.path.name}/report.html"
            for cell in summary.cells
            if (cell.path / "report.html").is_file()
        },
    )  # fmt: skip
    path = sweep_dir / "sweep.html"
    write_text(path, page)
    return path


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # rows, names and errors are data, never HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=tables.format_seconds,
        memory=tables.format_memory,
        number=tables.format_number,
        prompt=mark_prompt,
    )
    return environment


def _unbroken(sentence: str) -> str:
    """No line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(%|s|min|h|GiB)\b|%)", "\N{NO-BREAK SPACE}", sentence)


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """What stands in the page's head, the known ones only."""
    status = run.status
    model = run.setting("model.path") or run.setting("model.name")
    facts = [
        ("seed", run.result.get("seed", run.setting("seed"))),
        ("model", os.path.basename(str(model)) if model else None),
        ("data", run.setting("data.name")),
        ("weights", run.setting("mapping.method")),
        ("objective", run.setting("unlearning.objective")),
        ("started", status.get("started")),
        ("host", status.get("host")),
        ("job", status.get("job_id")),
        ("restarts", status.get("restarts") or None),
        ("git commit", str(status["git_commit"])[:12] if status.get("git_commit") else None),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _tiles(run: RunRecord) -> list[MetricRow]:
    rows = {row.metric.name: row for row in tables.before_after_rows(run.before, run.after)}
    return [
        next(rows[name] for name in names if name in rows) for names in TILES if any(name in rows for name in names)
    ]


def _grouped(rows: Sequence[MetricRow]) -> list[tuple[str, list[MetricRow]]]:
    groups: dict[str, list[MetricRow]] = {}
    for row in rows:
        groups.setdefault(row.metric.group, []).append(row)
    return list(groups.items())


def _interval_text(row: MetricRow) -> str:
    """95 % interval of a share after unlearning, `0.0–3.7 %`; empty for other metrics."""
    if row.metric.kind is not Kind.share or row.after is None or not row.num_prompts or not 0 <= row.after <= 1:
        return ""
    low, high = wilson_interval(row.after, row.num_prompts)
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def _family_plots(run: RunRecord) -> list[tuple[str, str]]:
    """(caption, plot) for each detector."""
    rows = tables.family_rows(run.before, run.after)
    drawn = []
    for detector, words in tables.DETECTORS.items():
        bars = [(tables.SETS[r.prompts], r.family, r.before, r.after) for r in rows if r.detector is detector]
        if bars:
            title = f"Judged by {words}"
            rates = [run.after.get(name, run.before.get(name)) for name in tables.rate_names(detector)]
            if None not in rates:
                recall, false_alarms = [tables.format_value(rate, Kind.share) for rate in rates]
                title += f", which finds {recall} of known poisoned and flags {false_alarms} of known clean answers"
            drawn.append((title, plots.family_bars(bars, title=f"Poisoned answers, judged by {words}")))
    return drawn


def _weights(run: RunRecord) -> list[dict[str, Any]]:
    drawn = []
    for group, weights in (("forget", run.forget_weights), ("retain", run.retain_weights)):
        if not weights:
            continue
        low = high = None
        # only bounded maps keep the weights themselves within the bounds
        if run.setting("mapping.bounded") and run.setting("mapping.method") in ("rapidun", "shuffled"):
            low, high = [number(run.setting(f"mapping.{group}.{bound}")) for bound in ("w_min", "w_max")]
        drawn.append(
            {
                "group": group,
                "count": len(weights),
                "low": min(weights),
                "high": max(weights),
                "effective": effective_sample_size(weights),
                "plot": plots.weight_histogram(weights, group=group, low=low, high=high),
            }
        )
    return drawn


def _diagnostics(diagnostics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
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
                forget, retain = [tables.format_value(share, Kind.share) for share in shares]
                rows.append((f"share of zeros after top k, scores for the {what} group", forget, retain))
    return rows


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return tables.format_number(value) if isinstance(value, float) else value if isinstance(value, str) else ""


def _warnings(run: RunRecord) -> list[str]:
    """Warnings of the mapping and of the other stages, each once."""
    return list(dict.fromkeys([*_listed(run.diagnostics), *_listed(run.status), *run.stage_warnings]))


def _listed(place: Mapping[str, Any]) -> list[str]:
    warnings = place.get("warnings")
    return [str(warning) for warning in warnings] if isinstance(warnings, list) else []


def _influence(run: RunRecord, influence: Influence) -> dict[str, Any]:
    pairs = top_pairs(influence)
    texts = read_instructions(run.path, {name for pair in pairs for name in (pair.train, pair.query)})
    blocks = influence.blocks
    grouped: dict[str, list[Any]] = {}
    for pair in pairs:
        grouped.setdefault(BLOCK_TITLES[pair.block], []).append(pair)
    return {
        "score": run.setting("influence.score"),
        "plot": plots.influence_map(blocks["ff"], blocks["fr"], blocks["rf"], blocks["rr"]),
        "tiled": len(influence.forget_ids) + len(influence.retain_ids) > plots.MAX_HEAT_CELLS,
        "pairs": grouped,
        "texts": texts,
    }


def _curves(run: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """(stage, [(caption, plot)]) of the stages that train: loss, terms, gradient norm, validation."""
    drawn = []
    for stage in ("poison", "unlearning"):
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for name, points in series(run.logged, stage).items():
            panel = _panel(name)
            if panel:
                panels.setdefault(panel, {})[LINES.get(name, name)] = points
        captioned = []
        for title in (title for title in PANELS if title in panels):
            lines = panels[title]
            named = title not in ("Loss", "Gradient norm")
            log, shares = title in LOG_PANELS, title in SHARE_PANELS
            captioned.append((title, plots.curves(lines, title=title, names=named, log=log, shares=shares)))
        if captioned:
            drawn.append((stage, captioned))
    return drawn


VALIDATION_SHARES = "Validation: shares"
VALIDATION = "Validation: cross-entropy, nats per token"
TERMS = "Forget and retain terms, unweighted"
CROSS_ENTROPY = "Cross-entropy of the training rows, nats per token"
CLIPPED = "Clipped steps, capped examples: shares so far"
PANELS = ("Loss", TERMS, CROSS_ENTROPY, VALIDATION, VALIDATION_SHARES, "Gradient norm", CLIPPED)
LOG_PANELS = ("Gradient norm",)
SHARE_PANELS = (VALIDATION_SHARES, CLIPPED)
# lines in plain words; others are shown under their own name
LINES = {
    "forget_term": "forget term",
    "retain_term": "retain term",
    "ce_poisoned": "poisoned response",
    "ce_clean": "clean response",
    "ce_retain": "retain rows",
    "val_loss_clean": "clean rows",
    "forget_loss_poisoned": "forget: poisoned",
    "forget_loss_clean": "forget: clean",
    "forget_preference": "forget rows that prefer the poisoned response",
    "clipped_share": "clipped steps",
    "capped_share": "capped examples",
}


def _panel(name: str) -> str | None:
    """The plot that a logged name belongs to; None for what is not worth one (learning rate, speed)."""
    words = ("asr", "rate", "match", "rouge", "preference")
    if name.startswith(("val_", "eval_", "forget_loss", "forget_preference")):
        return VALIDATION_SHARES if any(word in name for word in words) else VALIDATION
    if name.startswith(("clipped", "capped")):
        return CLIPPED
    if name.startswith("ce_"):
        return CROSS_ENTROPY
    if name.endswith("_term"):
        return TERMS
    return {"loss": "Loss", "grad_norm": "Gradient norm"}.get(name)
