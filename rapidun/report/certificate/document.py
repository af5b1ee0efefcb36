"""certificate.json: everything that the certificate says, as plain values. docs/certificate.md has it key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.redact import hide
from rapidun.report.attacks import attack_lines, attack_rows
from rapidun.report.certificate import sources
from rapidun.report.metrics import DETECTORS, ROLES
from rapidun.report.privacy import privacy_rows
from rapidun.report.read import RunRecord, read_run
from rapidun.report.untried import limits
from rapidun.report.verdict import kept, rules, shares
from rapidun.report.verdict.gather import judge
from rapidun.report.verdict.kept import Kept
from rapidun.report.verdict.rules import Verdict
from rapidun.report.verdict.shares import Share, Try

# raised when a key's meaning changes
FORMAT = 1
THRESHOLDS = {
    "min_recall": shares.MIN_RECALL,
    "missed_share": shares.MISSED,
    "min_before": rules.MIN_BEFORE,
    "forget_quality_level": rules.LEVEL,
    "cost_perplexity": kept.COST_PERPLEXITY,
    "cost_score": kept.COST_SCORE,
    "broken_perplexity": kept.BROKEN_PERPLEXITY,
    "broken_score": kept.BROKEN_SCORE,
    "interval": "Wilson, 95 %",
}


def read_certifiable(run_dir: Path) -> RunRecord:
    """The files of a run that was evaluated after unlearning.

    Raises: DataError for any other folder; ArtifactError for a damaged file.
    """
    run = read_run(run_dir)
    if not run.after:
        raise DataError(
            f"certify: need a run that was evaluated, got {run_dir} without evaluation/after.json. Run it again with "
            "stages=[...,evaluation], or leave stages out"
        )
    return run


def make_document(run: RunRecord, *, verified: Mapping[str, Any], in_sweep: int = 0) -> dict[str, Any]:
    """The certificate of a run as JSON values; the same for the same files.

    Args: verified: what `rapidun verify` looked at. in_sweep: cells of the sweep that the run is one of; 0 = of none.
    Raises: ArtifactError for a damaged or missing file.
    """
    judged, stored = judge(run), sources.artifacts(run)
    attacks = judged.attacks
    warnings = [line for one in stored for line in one["warnings"]]
    rows = [row for row in attack_rows(attacks) if row.name not in ("plain", "unquantised")]
    document = {
        "format": FORMAT,
        "verdict": _verdict(judged.verdict, judged.kept),
        "run": of_run(run, stored),
        "forgotten": sources.forgotten(run, of_facts=judged.facts),
        "chosen": sources.chosen(run),
        "tried": [_try(one) for one in judged.tries],
        "curves": [asdict(one) for one in attack_lines(attacks, chosen=str(run.detectors.get("detector") or ""))],
        "detectors": _detectors(run),
        "privacy": _privacy(judged.privacy),
        "kept": [_metric(row) for row in judged.kept.rows],
        "not_tried": judged.lacking,
        "limits": limits(
            run, attacks, of_facts=judged.facts, warnings=warnings, in_sweep=in_sweep,
            counts_noted=all(row.counts.get("unlearned", (None, None))[0] is not None for row in rows),
        ),
        "commands": {
            "run": run.command,
            "check": "rapidun verify DIR",
            "certificate": "rapidun certify DIR",
        },
        "verified": dict(verified),
        "artifacts": [{name: one[name] for name in one if name not in ("warnings", "packages")} for one in stored],
        "files": sources.run_files(run.path),
    }  # fmt: skip
    hidden: dict[str, Any] = hide(document)
    return hidden


def _verdict(said: Verdict, damage: Kept) -> dict[str, Any]:
    return {
        "outcome": said.outcome.name,
        "sentence": said.sentence,
        "reasons": [{"code": reason.code, "text": reason.text} for reason in said.reasons],
        "kept": damage.damage.value,
        "kept_sentence": damage.sentence,
        "thresholds": THRESHOLDS,
    }


def of_run(run: RunRecord, stored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Its name and seed, what it was made from and with. Args: stored: its artifacts (sources.py)."""
    made = {one["link"]: one for one in stored}
    unlearning = made.get("unlearning") or {}
    return {
        "name": run.name,
        "folder": run.path.resolve().name,
        "seed": run.result.get("seed", run.setting("seed")),
        "model": run.setting("model.path") or run.setting("model.name"),
        "adapter": run.setting("model.adapter"),
        "objective": run.setting("unlearning.objective"),
        "split": run.setting("evaluation.split"),
        "unlearned": unlearning.get("made"),
        "finished": run.status.get("finished"),
        "git_commit": run.status.get("git_commit"),
        "packages": unlearning.get("packages") or {},
        "artifacts_of_other_packages": sorted(
            one["link"] for one in stored if one["packages"] != (unlearning.get("packages") or one["packages"])
        ),
    }


def _try(one: Try) -> dict[str, Any]:
    return {
        "attack": one.attack,
        "name": one.name,
        "label": one.label,
        "what": one.what,
        "detector": None if one.detector is None else one.detector.words,
        "found": rules.found_by(one).value,
        "unlearned": _share(one.unlearned),
        "retrain": _share(one.retrain),
        "poisoned": _share(one.poisoned),
        "may_reach": one.retrain.high if one.retrain is not None else one.alarm,
        "sentence": one.sentence,
    }


def _share(share: Share | None) -> dict[str, Any] | None:
    if share is None:
        return None
    return {
        "share": share.value, "num": share.num, "counted": share.counted, "low": share.low, "high": share.high
    }  # fmt: skip


def _detectors(run: RunRecord) -> list[dict[str, Any]]:
    measured, chosen = run.detectors.get("detectors") or {}, run.detectors.get("detector")
    found = []
    for name, words in DETECTORS.items():
        rates = measured.get(name.value)
        if rates is not None:
            found.append({"name": name.value, "words": words, "is_the_runs": name.value == chosen,
                          **{key: rates[key] for key in ("recall", "false_positive_rate", "num_poisoned", "num_clean")},
                          "before": run.before.get(f"asr_seen{name.ending}"),
                          "after": run.after.get(f"asr_seen{name.ending}")})  # fmt: skip
    return found


def _privacy(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": row.metric.name,
            "label": row.label,
            **{
                role: None if value is None else {"value": value, "low": low, "high": high}
                for role in ROLES
                for value, low, high in [row.values.get(role, (None, None, None))]
            },
        }
        for row in privacy_rows(found)
    ]


def _metric(row: Any) -> dict[str, Any]:
    return {
        "name": row.metric.name, "group": row.metric.group, "label": row.metric.label,
        "before": row.before, "after": row.after, "num": row.num_prompts,
        "before_text": row.before_text, "after_text": row.after_text, "change": row.change_text,
    }  # fmt: skip
