"""report.html: one self-contained page per run. No script, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.files import write_text
from rapidun.report import metrics, tables
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import LINES, LOG_PANELS, PANELS, SHARE_PANELS, Kind, line_words, panel_of
from rapidun.report.privacy import privacy_section
from rapidun.report.read import (
    Influence,
    RunRecord,
    number,
    read_influence,
    read_instructions,
    read_run,
    read_texts,
    series,
)
from rapidun.report.run import plots
from rapidun.report.run.attacks import attack_section
from rapidun.report.run.detectors import detector_rows
from rapidun.report.run.facts import diagnostics_rows, facts, run_warnings
from rapidun.report.run.findings import key_findings
from rapidun.report.run.head import answer_of, title_of
from rapidun.report.run.neighbours import Plan
from rapidun.report.run.pairs import BLOCK_TITLES, top_pairs
from rapidun.report.run.samples import choose_samples, mark_prompt
from rapidun.report.run.tokens import (
    BY,
    NUM_STATIC_PAIRS,
    NUM_WEIGHTED_ROWS,
    choose_pairs,
    read_token_weights,
    read_tokens,
    shade_class,
    shade_css,
    show_token,
    strongest,
)
from rapidun.report.run.tried import tried_section
from rapidun.report.statistics import effective_sample_size
from rapidun.report.tables import MetricRow
from rapidun.report.verdict.kept import ON_CLEAN

# dropped rows of a group that the page shows
MAX_DROPPED = 20

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


def write_run_report(run_dir: Path, *, plan: Plan | None = None) -> Path:
    """Write report.html into a run folder from the files that are there; what is absent is said to be absent.

    Args: plan: of the sweep that the run is a cell of; None = as sweep.json beside it says.
    Returns: the path of report.html.
    Raises: ArtifactError if a file of the run is damaged.
    """
    run = read_run(run_dir)
    influence = read_influence(run_dir)
    chosen = str(run.detectors.get("detector") or "")
    rows = tables.before_after_rows(run.before, run.after, chosen=chosen)
    shown = {
        "groups": _grouped(rows),
        "families": _family_plots(run),
        "curves": _curves(run),
        "weights": _weights(run),
        "dropped": _dropped(run),
        "influence": None if influence is None else _influence(run, influence),
        "sets": choose_samples(run.generations),
        "costs": run.costs,
    }
    facts_run = of_facts({*run.before, *run.after})
    # facts have measures of their own (forgetting.py)
    tried = None if facts_run else tried_section(run_dir, run, chosen=chosen)
    tiles = tables.tiles(rows, chosen)
    # what the answer and the cards say is not said again
    told = key_findings(run, told=[*(row.metric.name for row in tiles), *ON_CLEAN])
    around = (plan or Plan(run_dir.parent)).around(run_dir.name)
    token_weights = read_token_weights(run_dir, NUM_WEIGHTED_ROWS)
    page = environment().get_template("run/run.html.j2").render(
        **shown,
        attacks=attack_section(run_dir, chosen=chosen),
        privacy=privacy_section(run_dir),
        title=title_of(run),
        said=answer_of(run, around),
        around=around,
        token_weights=token_weights,
        token_texts=read_instructions(run_dir, {id for id, _ in token_weights.rows} if token_weights else ()),
        shades=shade_css(),
        absent=[what for name, what in ABSENT.items() if not shown[name] and not (facts_run and name == "families")],
        facts_run=facts_run,
        judged=any(row.metric.detector for row in rows),
        run=run,
        facts=facts(run),
        tried=tried,
        findings=[_unbroken(sentence) for sentence in told],
        tiles=tiles,
        detectors=detector_rows(run.before, run.after, run.detectors),
        diagnostics=diagnostics_rows(run.diagnostics),
        warnings=run_warnings(run),
        counts=run.manifest.get("counts") or (run.manifest.get("result") or {}).get("counts") or {},
        total_seconds=sum(cost.seconds or 0.0 for cost in run.costs),
    )  # fmt: skip
    path = run_dir / "report.html"
    write_text(path, page)
    return path


def environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,  # rows, names and errors are data, never HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=metrics.format_seconds,
        memory=metrics.format_memory,
        number=metrics.format_number,
        prompt=mark_prompt,
        unbroken=_unbroken,
        lead=lambda text: _unbroken(text.partition(": ")[0]),
        rest=lambda text: _unbroken("".join(text.partition(": ")[1:])),
        token=show_token,
        shade=shade_class,
        strongest=strongest,
    )
    return environment


def _unbroken(sentence: str) -> str:
    """No line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(%|s|min|h|GiB)\b|%)", "\N{NO-BREAK SPACE}", sentence)


def _grouped(rows: Sequence[MetricRow]) -> list[tuple[str, list[MetricRow]]]:
    groups: dict[str, list[MetricRow]] = {}
    for row in rows:
        groups.setdefault(row.metric.group, []).append(row)
    return list(groups.items())


def _family_plots(run: RunRecord) -> list[tuple[str, str]]:
    """(caption, plot) for each detector."""
    rows = tables.family_rows(run.before, run.after)
    drawn = []
    for detector, words in metrics.DETECTORS.items():
        bars = [(metrics.SETS[r.prompts], r.family, r.before, r.after) for r in rows if r.detector is detector]
        if bars:
            title = f"Judged by {words}"
            rates = [run.after.get(name, run.before.get(name)) for name in metrics.rate_names(detector)]
            if None not in rates:
                recall, false_alarms = [metrics.format_value(rate, Kind.share) for rate in rates]
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
        exponential = run.setting("mapping.map") in (None, "exp") and run.setting("mapping.null") in (None, "none")
        methods = ["rapidun", "strength", "recommended", "shuffled", "contrastive", "repsim"]
        methods += ["guard", "loreun_static", "loreun_dynamic"] if group == "forget" else []
        if run.setting("mapping.bounded") and exponential and run.setting("mapping.method") in methods:
            low, high = [number(run.setting(f"mapping.{group}.{bound}")) for bound in ("w_min", "w_max")]
        drawn.append(
            {
                "group": group,
                "count": len(weights),
                "low": min(weights),
                "high": max(weights),
                "effective": effective_sample_size(weights),
                "plot": plots.weight_histogram(weights, group=group, low=low, high=high),
                "scores": _scores(run, group),
            }
        )
    return drawn


def _scores(run: RunRecord, group: str) -> str:
    """Picture of what the weights were made from; empty where the run has no scores."""
    pairs = [(number(row.get("score")), row.get("weight")) for row in run.row_scores if row.get("group") == group]
    scored = [(score, weight) for score, weight in pairs if score is not None]
    if not scored:
        return ""
    facts = run.diagnostics.get(group)
    threshold = number(facts.get("split_threshold")) if isinstance(facts, dict) else None
    return plots.score_histogram(
        [score for score, weight in scored if weight != 0],
        [score for score, weight in scored if weight == 0],
        group=group,
        threshold=threshold,
    )


def _dropped(run: RunRecord) -> list[dict[str, Any]]:
    """The rows that got weight 0, as text, the lowest score of each group first; `hidden` counts the others."""
    found = []
    for group in ("forget", "retain"):
        rows = [row for row in run.row_scores if row.get("group") == group and row.get("weight") == 0]
        rows.sort(key=lambda row: number(row.get("score")) or 0.0)
        shown = rows[:MAX_DROPPED]
        texts = read_texts(run.path, {str(row.get("id")) for row in shown})
        if rows:
            found.append(
                {
                    "group": group,
                    "count": len(rows),
                    "hidden": len(rows) - len(shown),
                    "rows": [
                        {
                            "text": texts.get(str(row.get("id")), (str(row.get("id")), "")),
                            "score": row.get("score"),
                            "wrong": row.get("is_wrong"),
                        }
                        for row in shown
                    ],
                }
            )
    return found


def _influence(run: RunRecord, influence: Influence) -> dict[str, Any]:
    pairs = top_pairs(influence)
    tokens = read_tokens(run.path)
    shown = choose_pairs(tokens, NUM_STATIC_PAIRS)
    named = [(pair.train, pair.query) for pair in pairs] + [(pair.train, pair.query) for pair in shown]
    texts = read_instructions(run.path, {name for both in named for name in both})
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
        "token_pairs": shown,
        "num_token_pairs": len(tokens),
        "by": BY,
        "group": dict.fromkeys(influence.retain_ids, "retain") | dict.fromkeys(influence.forget_ids, "forget"),
    }


def _curves(run: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """(stage, [(caption, plot)]) of the stages that train: loss, terms, gradient norm, validation."""
    drawn = []
    facts_run = of_facts({*run.before, *run.after})
    for stage in ("poison", "unlearning"):
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        logged = series(run.logged, stage)
        for name, points in logged.items():
            panel = panel_of(name)
            if panel:
                panels.setdefault(panel, {})[line_words(name, facts=facts_run)] = points
        captioned = []
        for title in (title for title in PANELS if title in panels):
            lines = panels[title]
            named = title not in ("Loss", "Gradient norm")
            log, shares = title in LOG_PANELS, title in SHARE_PANELS
            captioned.append((title, plots.curves(lines, title=title, names=named, log=log, shares=shares)))
        captioned += _trade_off(logged)
        if captioned:
            drawn.append(("planting (stage poison)" if facts_run and stage == "poison" else stage, captioned))
    return drawn


def _trade_off(logged: Mapping[str, Sequence[tuple[float, float]]]) -> list[tuple[str, str]]:
    """Attack success against the clean validation loss of the same steps, where both were measured."""
    costs = dict(logged.get("val_loss_clean", ()))
    paths = {}
    for name in ("val_asr_seen", "val_asr_ood"):
        points = [(step, costs[step], share) for step, share in logged.get(name, ()) if step in costs]
        if points:
            paths[LINES[name]] = points
    title, across = "Trade-off: attack success against clean loss", "clean validation rows, nats per token"
    return [(title, plots.trade_off(paths, title=title, across=across))] if paths else []
