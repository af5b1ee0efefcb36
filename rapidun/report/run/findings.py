"""What a run showed, in plain sentences, every number of them computed."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

from rapidun.config.detectors import ALWAYS, Detector
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import (
    DETECTORS,
    METRICS,
    TESTABLE,
    TRIGGERED,
    Kind,
    Metric,
    format_number,
    format_percent,
    format_seconds,
    format_value,
    in_words,
    rate_names,
)
from rapidun.report.read import RunRecord, StageCost
from rapidun.report.run.forgetting import forgetting
from rapidun.report.statistics import effective_sample_size, wilson_interval

# below this share before unlearning there was hardly a backdoor to remove
WEAK_BACKDOOR = 0.10
# detectors that disagree by more than this many points are worth a look
DISAGREEMENT = 0.10
LOW_RECALL = 0.90


def key_findings(run: RunRecord, *, told: Collection[str] = ()) -> list[str]:
    """Sentences about the backdoor, the clean answers, the weights and the cost; empty for an empty run.

    Args: told: metrics that stand above in large numbers, and need no sentence.
    """
    sentences = [*run_detector(run.before, run.after, run.detectors, told=told)]
    sentences += [*backdoor(run.before, run.after, told=told), *forgetting(run.before, run.after, told=told)]
    sentences += clean_answers(run.before, run.after, told=told)
    for group, weights in (("Forget", run.forget_weights), ("Retain", run.retain_weights)):
        if weights:
            sentences.append(weight_sentence(group, weights))
            sentences += split_sentences(group, run.diagnostics.get(group.lower()))
    return [*sentences, *cost_sentences(run.costs)]


def run_detector(
    before: Mapping[str, float], after: Mapping[str, float], facts: Mapping[str, Any], *, told: Collection[str] = ()
) -> list[str]:
    """Which detector the run is judged by first, why, and what it says; empty where no detector was measured."""
    measured = facts.get("detectors") or {}
    if not measured:
        return []
    chosen = facts.get("detector")
    if chosen not in measured:
        return ["No detector tells answers known to be poisoned from clean ones. Read the sample answers."]
    detector, rates = Detector(chosen), measured[chosen]
    on = "known answers that nothing was fitted on" if facts.get("held_out") else "known answers"
    others = "" if len(measured) == 1 else f", the best of {len(measured)}"
    sentence = (
        f"The run's detector is {DETECTORS[detector]}{others} by recall less false alarms on {on}: it fires on "
        f"{format_percent(rates['recall'])} of {rates['num_poisoned']} poisoned and "
        f"{format_percent(rates['false_positive_rate'])} of {rates['num_clean']} clean ones."
    )
    name = f"asr_seen{detector.ending}"
    if detector is not Detector.keyword and (name in before or name in after):
        sentence += f" Keywords are not: read asr_seen beside {name}."
        if name not in told:
            shares = _from_to(before.get(name), after.get(name))
            sentence += f" Poisoned answers on seen triggers by the run's detector: {shares}."
    return [sentence]


def backdoor(before: Mapping[str, float], after: Mapping[str, float], *, told: Collection[str] = ()) -> list[str]:
    """How often triggered prompts still get the poisoned answer, and how far the detectors can be trusted."""
    shares = [metric for metric in _told(before.keys() | after.keys()) if metric.kind is Kind.share]
    sentences, others = [], []
    for metric in (metric for metric in shares if metric.name not in told):
        start, end = before.get(metric.name), after.get(metric.name)
        judge = " (judged by likelihood)" if metric.detector is Detector.likelihood else ""
        sentence = f"{metric.finding}{judge}: {_from_to(start, end)}"
        if metric.prompts == TESTABLE:
            ending = metric.detector.ending if metric.detector else ""
            fire, total = (
                round(after.get(name, before.get(name, 0)))
                for name in (f"num_look_alikes_testable{ending}", "num_look_alikes")
            )
            sentences.append(
                f"{sentence} ({fire} of {total} look-alikes, those that fire in the poisoned model; the others are not "
                "testable)."
            )
            continue
        if metric.prompts not in TRIGGERED:
            others.append(f"{sentence}.")
            continue
        count = round(after.get(f"num_prompts_{metric.prompts}", 0))
        if end is not None and count > 0:
            low, high = wilson_interval(min(max(end, 0.0), 1.0), count)
            sentence += f" ({count} prompts; 95 % interval after: {_range(low, high)})"
        sentence += "."
        if start is not None and end is not None and start < WEAK_BACKDOOR:
            sentence += " These triggers hardly fired before, so the value after shows little."
        sentences.append(sentence)
    end, other = after.get("asr_seen"), after.get("asr_seen_likelihood")
    if end is not None and other is not None and abs(end - other) > DISAGREEMENT:
        sentences.append(
            f"The detectors disagree on seen triggers after unlearning: {format_percent(end)} by keywords, "
            f"{format_percent(other)} by likelihood. Read the sample answers."
        )
    for detector in ALWAYS:
        name, _ = rate_names(detector)
        recall = after.get(name, before.get(name))
        if recall is not None and recall < LOW_RECALL:
            sentences.append(
                f"The {detector.value} detector finds only {format_percent(recall)} of answers known to be poisoned: "
                "the shares it reports are too low."
            )
    return [*sentences, *others]


def clean_answers(before: Mapping[str, float], after: Mapping[str, float], *, told: Collection[str] = ()) -> list[str]:
    """What unlearning cost on clean prompts, and whether triggered prompts get clean answers again."""
    metrics = [metric for metric in _told(before.keys() & after.keys()) if metric.kind is not Kind.share]
    metrics = [in_words(metric, facts=of_facts(after)) for metric in metrics if metric.name not in told]
    shared = Counter(metric.finding for metric in METRICS.values())
    sentences = []
    for metric in metrics:
        start, end = before[metric.name], after[metric.name]
        what = f"{metric.finding}, {metric.label}" if shared[metric.finding] > 1 else metric.finding
        change = ""
        if metric.kind is Kind.perplexity:
            if not start:
                continue
            ratio = end / start - 1
            size = f"{abs(ratio):.1%}".replace("%", " %")
            way = "unchanged" if abs(ratio) < 0.0005 else f"{'up' if ratio > 0 else 'down'} by {size}"
            change = f" ({way})"
        sentences.append(
            f"{what}: {format_value(start, metric.kind)} before, {format_value(end, metric.kind)} after{change}."
        )
    return sentences


def weight_sentence(group: str, weights: Sequence[float]) -> str:
    """Range and effective sample size of one group's weights."""
    low, high, n = min(weights), max(weights), len(weights)
    if high - low < 1e-9:
        return f"{group} weights: all {n} are {format_number(low)}, so no row counts more than another."
    return (
        f"{group} weights: {format_number(low)} to {format_number(high)} over {n} rows; they count like "
        f"{format_number(effective_sample_size(weights))} equally weighted rows."
    )


def split_sentences(group: str, facts: object) -> list[str]:
    """Which rows a split dropped, or why it dropped none; and what the pack knows of it."""
    if not isinstance(facts, dict):
        return []
    sentences = []
    if facts.get("abstained"):
        sentences.append(f"No {group.lower()} row is told apart: {facts['abstained']}, so the weights are uniform.")
    elif "split_explained" in facts:
        sentences.append(
            f"{facts['num_dropped']} of {facts['num_rows']} {group.lower()} rows are dropped: their scores fall "
            f"into two clusters, {facts['split_separation']:.1f} standard deviations apart."
        )
    if facts.get("num_wrong"):
        sentence = f"The pack knows {facts['num_wrong']} {group.lower()} rows to be wrong"
        if facts["num_wrong_dropped"] or facts["num_right_dropped"]:
            sentence += (
                f"; {facts['num_wrong_dropped']} of them and {facts['num_right_dropped']} right ones are dropped"
            )
        if "auroc_weights" in facts:
            sentence += f"; AUROC of the weights {facts['auroc_weights']:.2f}"
        sentences.append(sentence + ".")
    return sentences


def cost_sentences(costs: Sequence[StageCost]) -> list[str]:
    """Total seconds, the slowest stage, peak memory."""
    timed = [cost for cost in costs if cost.seconds is not None]
    if not timed:
        return []
    total = sum(cost.seconds or 0.0 for cost in timed)
    slowest = max(timed, key=lambda cost: cost.seconds or 0.0)
    sentence = f"Cost: {format_seconds(total)} over {len(timed)} stages"
    if len(timed) == 1:
        sentence = f"Cost: {format_seconds(total)} for {slowest.stage}"
    elif total > 0:
        sentence += f", most of it {slowest.stage} ({format_seconds(slowest.seconds)})"
    peaks = [cost.peak_memory_gb for cost in timed if cost.peak_memory_gb is not None]
    if peaks:
        sentence += f"; peak memory {max(peaks):.2f} GiB"
    cached = [cost.stage for cost in timed if cost.cached]
    if cached:
        sentence += f". From the store, measured when first made: {', '.join(cached)}"
    return [sentence + "."]


def _told(measured: Set[str]) -> list[Metric]:
    """The metrics with a finding; of those that share one the first that was measured."""
    first: dict[str, Metric] = {}
    for metric in METRICS.values():
        if metric.finding and metric.name in measured:
            first.setdefault(metric.finding, metric)
    return list(first.values())


def _from_to(start: float | None, end: float | None) -> str:
    parts = [
        f"{format_percent(share)} {when}" for share, when in ((start, "before"), (end, "after")) if share is not None
    ]
    return ", ".join(parts)


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f} %"
