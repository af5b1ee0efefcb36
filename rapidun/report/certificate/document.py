"""certificate.json: everything that the certificate says, as plain values. docs/certificate.md has it key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.redact import hide
from rapidun.report.certificate import kept, shares, sources, verdict
from rapidun.report.certificate.facts import extraction_try, fact_tries, facts_before
from rapidun.report.certificate.shares import Share, Try
from rapidun.report.certificate.tries import Bounds, before_of, triggered_tries
from rapidun.report.certificate.verdict import Circumstances, Trace, Verdict
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import DETECTORS, ROLES
from rapidun.report.read import RunRecord, number, read_object, read_run
from rapidun.report.run.attacks import attack_lines, attack_rows, read_attacks
from rapidun.report.run.privacy import privacy_rows, read_privacy
from rapidun.report.run.untried import limits, not_tried
from rapidun.report.tables import before_after_rows

# raised when a key's meaning changes
FORMAT = 1
# of a variant's success in the poisoned model, where no file of the run says it
MIN_ASR = 0.1
THRESHOLDS = {
    "min_recall": shares.MIN_RECALL,
    "missed_share": shares.MISSED,
    "min_before": verdict.MIN_BEFORE,
    "forget_quality_level": verdict.LEVEL,
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
    facts = of_facts(run.after)
    attacks, privacy = read_attacks(run.path), read_privacy(run.path)
    retrain = read_object(run.path / "evaluation" / "retrain.json")
    stored = sources.artifacts(run)
    tries = _tries(run, attacks, privacy, retrain, is_facts=facts)
    lacking = not_tried(run, attacks, privacy, of_facts=facts)
    damage = kept.kept(before_after_rows(run.before, run.after, chosen=str(run.detectors.get("detector") or "")))
    said = verdict.decide(
        tries,
        Circumstances(
            before=facts_before(run) if facts else before_of(run),
            damage=damage.damage,
            damage_text=damage.sentence.partition(": ")[2].rstrip("."),
            traces=_traces(privacy),
            forget_quality=run.after.get("forget_quality"),
            held_out=run.setting("evaluation.split") != "val",
            has_retrain="retrain" in attacks or bool(retrain) or "retrain" in privacy,
            how_to_attack="data.probe=FILE" if facts else verdict.HOW_TO_ATTACK,
            not_tried=[one["what"] for one in lacking if one["how"] and not one["what"].startswith("the detector")],
        ),
    )
    warnings = [line for one in stored for line in one["warnings"]]
    rows = [row for row in attack_rows(attacks) if row.name not in ("plain", "unquantised")]
    document = {
        "format": FORMAT,
        "verdict": _verdict(said, damage),
        "run": of_run(run, stored),
        "forgotten": sources.forgotten(run, of_facts=facts),
        "chosen": sources.chosen(run),
        "tried": [_try(one) for one in tries],
        "curves": [asdict(one) for one in attack_lines(attacks, chosen=str(run.detectors.get("detector") or ""))],
        "detectors": _detectors(run),
        "privacy": _privacy(privacy),
        "kept": [_metric(row) for row in damage.rows],
        "not_tried": lacking,
        "limits": limits(
            run, attacks, of_facts=facts, warnings=warnings, in_sweep=in_sweep,
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


def _tries(
    run: RunRecord,
    attacks: Mapping[str, Any],
    privacy: Mapping[str, Any],
    retrain: Mapping[str, Any],
    *,
    is_facts: bool,
) -> list[Try]:
    counts: dict[str, int] = (run.manifest.get("result") or {}).get("counts") or {}
    # a pack with triggers may have paraphrases too
    of_rows = fact_tries(run, retrain, privacy, counts=counts)
    if is_facts:
        return of_rows
    split = f"{run.setting('evaluation.split') or 'test'}_seen_trig"
    most = _smallest(counts.get(split), run.setting("evaluation.attacks.num_prompts"))
    min_asr = number(run.setting("evaluation.attacks.prompts.min_asr"))
    bounds = Bounds(num_prompts=most, min_asr=MIN_ASR if min_asr is None else min_asr)
    num_forget = counts.get("forget", 0)
    num_rows = _smallest(num_forget, run.setting("evaluation.privacy.num_rows")) or 0
    extraction = extraction_try(privacy, num_rows=num_rows, num_forget=num_forget)
    return [*triggered_tries(run, attacks, bounds), *extraction, *of_rows]


def _smallest(*numbers: Any) -> int | None:
    return min((int(one) for one in numbers if one is not None), default=None)


def _verdict(said: Verdict, damage: kept.Kept) -> dict[str, Any]:
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
        "found": verdict.found_by(one).value,
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


def _traces(found: Mapping[str, Any]) -> list[Trace]:
    """Membership inference with intervals of the unlearned and of the retrained model."""
    traces = []
    for row in privacy_rows(found):
        pairs = [row.values.get(role, (None, None, None)) for role in ("unlearned", "retrain")]
        if row.metric.name.startswith("mia_") and all(value is not None for pair in pairs for value in pair):
            one, two = (tuple(float(value or 0.0) for value in pair) for pair in pairs)
            traces.append(Trace(label=row.label, unlearned=one, retrain=two))  # type: ignore[arg-type]
    return traces


def _metric(row: Any) -> dict[str, Any]:
    return {
        "name": row.metric.name, "group": row.metric.group, "label": row.metric.label,
        "before": row.before, "after": row.after, "num": row.num_prompts,
        "before_text": row.before_text, "after_text": row.after_text, "change": row.change_text,
    }  # fmt: skip
