"""What a run's verdict is decided by, read from its folder: all that was tried, and what stands beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rapidun.report.attacks import read_attacks
from rapidun.report.forgotten import of_facts
from rapidun.report.privacy import privacy_rows, read_privacy
from rapidun.report.read import RunRecord, number, read_object
from rapidun.report.tables import before_after_rows
from rapidun.report.untried import HOW_TO_RETRAIN, not_tried
from rapidun.report.verdict import rules
from rapidun.report.verdict.facts import extraction_try, fact_tries, facts_before
from rapidun.report.verdict.kept import Kept, kept
from rapidun.report.verdict.rules import Circumstances, Trace, Verdict
from rapidun.report.verdict.shares import Try
from rapidun.report.verdict.tries import Bounds, before_of, triggered_tries

# of a variant's success in the poisoned model, where no file of the run says it
MIN_ASR = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The verdict on a run and all that it came from."""

    # without triggers
    facts: bool
    attacks: dict[str, Any]
    privacy: dict[str, Any]
    tries: list[Try]
    around: Circumstances
    kept: Kept
    # untried.not_tried
    lacking: list[dict[str, str]]
    verdict: Verdict


def judge(run: RunRecord) -> Judged:
    """Decide on a run that was evaluated after unlearning. Raises: ArtifactError for a damaged file."""
    facts = of_facts(run.after)
    attacks, privacy = read_attacks(run.path), read_privacy(run.path)
    retrain = read_object(run.path / "evaluation" / "retrain.json")
    tries = _tries(run, attacks, privacy, retrain, is_facts=facts)
    lacking = not_tried(run, attacks, privacy, of_facts=facts)
    if retrain:
        # it was asked for facts, where no attack and no measure of privacy was
        lacking = [one for one in lacking if one["how"] != HOW_TO_RETRAIN]
    damage = kept(before_after_rows(run.before, run.after, chosen=str(run.detectors.get("detector") or "")))
    around = Circumstances(
        before=facts_before(run) if facts else before_of(run),
        damage=damage.damage,
        damage_text=damage.sentence.partition(": ")[2].rstrip("."),
        traces=_traces(privacy),
        forget_quality=run.after.get("forget_quality"),
        held_out=run.setting("evaluation.split") != "val",
        has_retrain="retrain" in attacks or bool(retrain) or "retrain" in privacy,
        how_to_attack="data.probe=FILE" if facts else rules.HOW_TO_ATTACK,
        not_tried=[one["what"] for one in lacking if one["how"] and not one["what"].startswith("the detector")],
    )
    return Judged(
        facts=facts, attacks=attacks, privacy=privacy, tries=tries, around=around, kept=damage, lacking=lacking,
        verdict=rules.decide(tries, around),
    )  # fmt: skip


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


def _traces(found: Mapping[str, Any]) -> list[Trace]:
    """Membership inference with intervals of the unlearned and of the retrained model."""
    traces = []
    for row in privacy_rows(found):
        pairs = [row.values.get(role, (None, None, None)) for role in ("unlearned", "retrain")]
        if row.metric.name.startswith("mia_") and all(value is not None for pair in pairs for value in pair):
            one, two = (tuple(float(value or 0.0) for value in pair) for pair in pairs)
            traces.append(Trace(label=row.label, unlearned=one, retrain=two))  # type: ignore[arg-type]
    return traces
