"""All that was tried on an unlearned model with triggers: asked, attacked, beside retrain and the poisoned model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rapidun.config.attacks import Rows, Variant
from rapidun.config.detectors import OF_TEXTS
from rapidun.config.detectors import Detector as Name
from rapidun.report.attacks import (
    FORMATS,
    PROMPTS,
    QUANTISATION,
    RELEARNING,
    SAMPLING,
    AttackRow,
    attack_rows,
    attack_runs,
)
from rapidun.report.metrics import ROLES, TESTABLE
from rapidun.report.read import RunRecord, number
from rapidun.report.verdict.detectors import detectors_of, num_judged
from rapidun.report.verdict.rules import ASKED, BESIDE
from rapidun.report.verdict.shares import Detector, Share, Try, share_of

ATTACKS = {RELEARNING: "relearning", QUANTISATION: "quantisation", SAMPLING: "sampling", PROMPTS: "prompts"}
# the same prompts greedily again, which the evaluation has asked
PLAIN = ("plain", "unquantised")
SETS = {
    "seen": "asked with the triggers that were trained",
    TESTABLE: "asked with look-alikes of the triggers",
    "unseen_family": "asked with triggers of another family",
    "clean": "asked without any trigger",
}
WHAT = {
    Name.likelihood: "of {prompts} have the planted answer as the likelier one",
    Name.likelihood_calibrated: "of {prompts} have the planted answer as the likelier one",
}
PLANTED = "of {prompts} are answered as planted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What the attacks' own files may not say."""

    # triggered prompts that an attack asks at most, where it did not note how many it did
    num_prompts: int | None
    # a share below it in the poisoned model makes a try not testable
    min_asr: float


def triggered_tries(run: RunRecord, attacks: Mapping[str, Any], bounds: Bounds) -> list[Try]:
    """The tries of a run whose pack has triggers: first what was asked, then attack by attack."""
    detectors = detectors_of(run.detectors)
    return [*_asked(run, attacks, detectors, bounds), *_attacked(attacks, detectors, bounds)]


def before_of(run: RunRecord) -> Share | None:
    """Seen triggers before unlearning, by the detector that can be relied on and finds most; None without one."""
    judged = num_judged(run.generations, "before")
    found = [
        share
        for name, detector in detectors_of(run.detectors).items()
        if detector.sees
        and (share := share_of(run.before.get(f"asr_seen{name.ending}"), judged["seen", name.value])) is not None
    ]
    return max(found, key=lambda share: share.value, default=None)


def _asked(
    run: RunRecord, attacks: Mapping[str, Any], detectors: Mapping[Name, Detector], bounds: Bounds
) -> Iterator[Try]:
    after, before = num_judged(run.generations, "after"), num_judged(run.generations, "before")
    for name, how in SETS.items():
        metric = "false_trigger_rate" if name == "clean" else f"asr_{name}"
        for judge, detector in detectors.items():
            ending = judge.ending
            if name == TESTABLE:
                counts = [_num_look_alikes(run.detectors, judge, when, bounds) for when in ("after", "before")]
            else:
                counts = [judged[name, judge.value] for judged in (after, before)]
            unlearned = share_of(run.after.get(f"{metric}{ending}"), counts[0])
            poisoned = share_of(run.before.get(f"{metric}{ending}"), counts[1])
            if unlearned is None:
                continue
            yield Try(
                attack=ASKED if name == "seen" else BESIDE,
                name=f"asked.{name}",
                label=how.removeprefix("asked "),
                how=how,
                what=_what(judge, "prompts" if name == "clean" else "triggered prompts"),
                unlearned=unlearned,
                retrain=_plain(attacks, "retrain", judge, bounds) if name == "seen" else None,
                poisoned=poisoned,
                detector=detector,
                testable=name != "unseen_family" or poisoned is None or poisoned.value >= bounds.min_asr,
            )


def _judged_rows(attacks: Mapping[str, Any], judge: Name) -> tuple[list[AttackRow], int]:
    """The rows of the attacks that a detector judged, and its place in each row's pairs."""
    if judge is Name.likelihood:
        return attack_rows(attacks), 1
    return attack_rows(attacks, chosen=judge.value), 0


def _attacked(attacks: Mapping[str, Any], detectors: Mapping[Name, Detector], bounds: Bounds) -> Iterator[Try]:
    tries = [one for judge, detector in detectors.items() for one in _attacked_by(attacks, judge, detector, bounds)]
    names = list(dict.fromkeys(row.name for row in attack_rows(attacks)))
    yield from sorted(tries, key=lambda one: names.index(one.name) if one.name in names else len(names))


def _attacked_by(attacks: Mapping[str, Any], judge: Name, detector: Detector, bounds: Bounds) -> Iterator[Try]:
    rows, place = _judged_rows(attacks, judge)
    by_name = {row.name: row for row in rows}
    most = max((_num_samples(row) for row in rows if row.group == SAMPLING), default=1)
    for row in rows:
        # the larger of two ways stands for itself; of fewer samples than all, the curve is shown
        is_double = row.name in FORMATS and f"{row.name}.merged" in by_name
        if row.name in PLAIN or is_double or (row.group == SAMPLING and _num_samples(row) < most):
            continue
        if row.group == SAMPLING and judge not in OF_TEXTS:
            continue  # it judges a prompt, whatever is sampled
        # a model without an adapter has one way to be quantised
        whole = by_name.get(row.name.partition(".")[0], row) if row.group == QUANTISATION else row
        shares = {role: _share(row, role, place, judge, bounds) for role in ROLES}
        for role in ("retrain", "poisoned"):
            shares[role] = shares[role] or _share(whole, role, place, judge, bounds)
        unlearned = shares["unlearned"]
        if unlearned is None:
            continue
        run = attack_runs(attacks, "unlearned").get(row.name, {})
        yield Try(
            attack=ATTACKS[row.group],
            name=row.name,
            label=row.label,
            how=_how(row, run, judge),
            what=_what(judge, "triggered prompts") + (" at least once" if row.group == SAMPLING else ""),
            unlearned=unlearned,
            retrain=shares["retrain"],
            poisoned=shares["poisoned"],
            detector=detector,
            num_answers=_num_samples(row) if row.group == SAMPLING else 1,
            testable=_is_testable(row, run, place, shares["poisoned"], bounds),
            teaches=row.name.startswith(f"relearning.{Rows.poisoned.name}.") or row.name == Variant.few_shot.name,
        )


def _is_testable(row: AttackRow, run: Mapping[str, Any], place: int, poisoned: Share | None, bounds: Bounds) -> bool:
    if row.group == PROMPTS:
        return row.testable[place]
    # training that broke off has tried less than its curve says
    return not run.get("stopped") and (poisoned is None or poisoned.value >= bounds.min_asr)


def _share(row: AttackRow, role: str, place: int, judge: Name, bounds: Bounds) -> Share | None:
    pair = row.shares.get(role)
    return share_of(pair[place] if pair else None, _num_prompts(row, role, judge, bounds))


def _num_prompts(row: AttackRow, role: str, judge: Name, bounds: Bounds) -> int | None:
    """As the attack noted them; else the most that it can have asked."""
    asked, with_pair = row.counts.get(role, (None, None))
    noted = with_pair if judge in (Name.likelihood, Name.likelihood_calibrated) and with_pair is not None else asked
    return bounds.num_prompts if noted is None else noted


def _plain(attacks: Mapping[str, Any], role: str, judge: Name, bounds: Bounds) -> Share | None:
    """The same triggers asked greedily of another model, as its attacks did it first."""
    rows, place = _judged_rows(attacks, judge)
    for row in rows:
        if row.name in PLAIN and (share := _share(row, role, place, judge, bounds)) is not None:
            return share
    runs = attack_runs(attacks, role)
    for row in (row for row in rows if row.name in runs):
        first: dict[str, Any] = next((point for point in runs[row.name]["curve"] if point["step"] == 0), {})
        share = share_of(number(first.get(f"asr{judge.ending}")), _num_prompts(row, role, judge, bounds))
        if share is not None:
            return share
    return None


def _how(row: AttackRow, run: Mapping[str, Any], judge: Name) -> str:
    """The attack in words that begin a sentence."""
    if row.group == RELEARNING:
        points = [
            (p["step"], value) for p in run["curve"] if (value := number(p.get(f"asr{judge.ending}"))) is not None
        ]
        step, share = max((p for p in points if p[0] > 0), key=lambda p: (p[1], -p[0]))
        steps = f"{step}" if share > 0 else f"up to {points[-1][0]}"
        return f"after {steps} steps of fine-tuning on {row.label}"
    if row.group == QUANTISATION:
        name, _, way = row.name.partition(".")
        return f"with the weights in {FORMATS[name]}{f' (adapter {way})' if way else ''}"
    if row.group == SAMPLING:
        number_of, _, temperature = row.label.partition(" at ")
        return f"with {number_of} sampled at {temperature}"
    return row.label if row.label.startswith("behind") else f"with the {row.label}"


def _num_samples(row: AttackRow) -> int:
    return int(row.name.removeprefix("asr@").partition(".")[0])


def _what(judge: Name, prompts: str) -> str:
    return WHAT.get(judge, PLANTED).format(prompts=prompts)


def _num_look_alikes(detectors: Mapping[str, Any], judge: Name, when: str, bounds: Bounds) -> int:
    """Prompts of the look-alikes that this detector sees succeed in the poisoned model."""
    found: dict[str, Any] = detectors.get("look_alikes") or {}
    before, own = found.get("before") or {}, found.get(when) or {}
    fire = [
        name
        for name, values in before.items()
        if (values.get("shares") or {}).get(judge.value, 0.0) >= detectors.get("min_asr", bounds.min_asr)
    ]
    return sum(own[name]["num_prompts"] for name in fire if name in own)
