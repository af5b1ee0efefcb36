"""The first line of a sweep's page: which setting, at what price, how sure, beside what. Ties are said."""

from __future__ import annotations

from collections.abc import Sequence

from rapidun.report import metrics
from rapidun.report.metrics import (
    ATTACKED,
    BEFORE,
    METRICS,
    RETRAIN,
    Kind,
    format_percent,
    format_value,
    heading_of,
    kind_of,
)
from rapidun.report.statistics import wilson_interval
from rapidun.report.sweep.cells import swept_keys
from rapidun.report.sweep.comparisons import difference_text
from rapidun.report.sweep.groups import Group
from rapidun.report.sweep.ranking import best_groups, comparable
from rapidun.report.sweep.summary import Summary
from rapidun.report.sweep.trials import excess_text
from rapidun.report.tables import MetricRow
from rapidun.report.verdict.answer import NO_PRICE, Answer, Mark
from rapidun.report.verdict.kept import ON_CLEAN, ON_FACTS, Kept, kept
from rapidun.report.verdict.rules import MIN_BEFORE, Damage

# so many settings are named, the others counted
MOST_NAMED = 3


def title_of(summary: Summary, *, name: str = "") -> str:
    """`tau: mapping × seed, 12 cells`. Args: name: in place of the folder's."""
    keys = swept_keys(summary.cells, seed=True)
    swept = " × ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
    count = len(summary.cells)
    return f"{name or summary.name}: {f'{swept}, ' if swept else ''}{count} {'cell' if count == 1 else 'cells'}"


def answer_of(summary: Summary) -> Answer:
    """The line and its notes. Settings whose model is broken are not chosen, and it is said."""
    groups = summary.groups
    if not groups:
        why = f"; {summary.failed} failed" if summary.failed else ""
        return Answer(headline=f"No cell has finished, so nothing can be said{why}.")
    if summary.budget is not None and not summary.candidates:
        near = min(groups, key=lambda group: group.verdict.excess if group.verdict else float("inf"))
        missed = f": {near.label} is nearest and misses it by {excess_text(near)}" if near.verdict else ""
        text = f"No setting is within the budget ({summary.budget.text}){missed}."
        return Answer(headline=text, mark=Mark.bad)
    criterion = next((name for name in metrics.criteria() if any(name in one.metrics for one in groups)), "")
    if not criterion:
        return Answer(headline="No cell measured anything that settings are judged by.")
    return _chosen(summary, criterion)


def _chosen(summary: Summary, criterion: str) -> Answer:
    measured = [one for one in comparable(summary.candidates, criterion) if criterion in one.metrics]
    whole = [one for one in measured if kept_of(one).damage is not Damage.broken]
    best = best_groups(whole)
    mark = Mark.open
    # of equals the one that the other criteria take
    first = (best.get(criterion) or next(iter(best.values()), whole) or measured)[0]
    tied = best.get(criterion) or (whole if whole else measured)
    amount, price = _amount(first, criterion), _price(first)
    if not whole:
        mark = Mark.bad
        text = f"{_all(measured)} broke the model, so nothing can be chosen: {first.label}: {amount}, {price}"
    elif len(whole) == 1 and len(measured) > 1:
        text = f"{first.label} is the only one of {len(measured)} settings that left the model whole: {amount}, {price}"
    elif len(measured) == 1 and summary.budget is not None and len(summary.groups) > 1:
        text = f"{first.label} is the only setting within the budget: {amount}, {price}"
    elif len(measured) == 1:
        text = f"One setting was run, so there is nothing to choose: {first.label}: {amount}, {price}"
    elif criterion in best and len(tied) == 1:
        text = f"{first.label} {_leads(criterion)}: {amount}, {price}"
    elif criterion in best:
        text = f"{_named(tied)} tie: {amount}, {price}"
    elif best:
        name = next(iter(best))
        value = summary.cell_text(first, name)
        winners = f"{_named(best[name])} {'is' if len(best[name]) == 1 else 'are'} best ({value})"
        same = f"{_all(whole)} come to the same {heading_of(criterion)}"
        text = f"{same}: {amount}; by {heading_of(name)} {winners}, {price}"
    else:
        text = f"No two of {len(whole)} settings differ in what they are judged by: {amount}, {price}"
    before = first.metrics.get(f"{BEFORE}{criterion}")
    if before is not None and kind_of(criterion) is Kind.share and before.mean < MIN_BEFORE:
        text = f"Cannot be told, it hardly showed before: {text}"
    broken = [one for one in measured if one not in whole]
    if whole and broken:
        lowest = broken[0]
        text += f". Not chosen, since the model is broken: {_named(broken)} ({kept_of(lowest).sentence.rstrip('.')})"
    return Answer(
        headline=f"{text}.",
        mark=mark,
        notes=[
            *_price_note(first),
            ("How sure", _sure(summary, first, tied, measured, criterion)),
            *_beside(summary, first, criterion),
        ],
    )


def kept_of(group: Group) -> Kept:
    """What stayed, by the means over seeds."""
    return kept(
        [
            MetricRow(
                metric=METRICS[name],
                before=group.metrics[f"{BEFORE}{name}"].mean if f"{BEFORE}{name}" in group.metrics else None,
                after=group.metrics[name].mean,
            )
            for name in (*ON_CLEAN, *ON_FACTS)
            if name in group.metrics
        ]
    )


def _all(groups: Sequence[Group]) -> str:
    return "Both settings" if len(groups) == 2 else "The setting" if len(groups) == 1 else f"All {len(groups)} settings"


def _named(groups: Sequence[Group]) -> str:
    """`a, b and c`; many are counted."""
    names = [group.label for group in groups[:MOST_NAMED]]
    rest = len(groups) - len(names)
    names += [f"{rest} more"] if rest else []
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _leads(criterion: str) -> str:
    return "leaves least" if metrics.criteria()[criterion] < 0 else "keeps most"


def _amount(group: Group, criterion: str) -> str:
    """`0 % of triggered prompts are answered as planted (before unlearning 97 %)`."""
    before = group.metrics.get(f"{BEFORE}{criterion}")
    kind, mean = kind_of(criterion), group.metrics[criterion].mean
    earlier = "" if before is None else f" (before unlearning {_short(before.mean, kind)})"
    if criterion == "asr_seen":
        return f"{_short(mean, kind)} of triggered prompts are answered as planted{earlier}"
    return f"{heading_of(criterion)} {_short(mean, kind)}{earlier}"


def _short(value: float, kind: Kind) -> str:
    return format_percent(round(value, 3)) if kind is Kind.share else format_value(value, kind)


def _price(group: Group) -> str:
    found = kept_of(group)
    words = found.sentence.partition(": ")[2].rstrip(".")
    return {
        Damage.kept: NO_PRICE,
        Damage.cost: f"at the price of {words}",
        Damage.broken: f"and the model is broken ({words})",
        Damage.unknown: "at a price that was not measured",
    }[found.damage]


def _price_note(group: Group) -> list[tuple[str, str]]:
    found = kept_of(group)
    return [("Price", f"{found.sentence.partition(': ')[2]}")] if found.damage is Damage.kept else []


def _sure(
    summary: Summary, first: Group, tied: Sequence[Group], measured: Sequence[Group], criterion: str
) -> str:  # fmt: skip
    interval = first.metrics[criterion]
    parts = []
    if interval.low is None or interval.high is None:
        parts.append("one seed, which shows no spread: the order may be luck")
    else:
        parts.append(f"{interval.n} seeds, mean and 95 % interval over them {summary.cell_text(first, criterion)}")
    prompts = first.metrics.get("num_prompts_seen") if criterion == "asr_seen" else None
    if prompts is not None:
        count = round(prompts.mean)
        most = format_percent(round(wilson_interval(min(1.0, max(0.0, interval.mean)), count)[1], 3))
        parts.append(f"{count} prompts a seed leave up to {most} open")
    others = [one for one in measured if all(one is not group for group in tied)]
    near = [one for one in others if _overlap(one, first, criterion)]
    if others and interval.low is not None:
        parts.append(
            f"its interval meets {'those' if len(near) > 1 else 'that'} of {_named(near)}, so their order is not shown"
            if near
            else f"no interval of the {len(others)} other setting{'' if len(others) == 1 else 's'} meets it"
        )
    parts.append(_attacked(first))
    if summary.budget is None and summary.shows_methods:
        parts.append("no budget of damage is set")
    return f"{'; '.join(parts)}."


def _overlap(one: Group, other: Group, name: str) -> bool:
    a, b = one.metrics[name], other.metrics[name]
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return True
    return a.low <= b.high and b.low <= a.high


def _attacked(group: Group) -> str:
    """The most that an attack brought back, beside the retrained model; or that there was none."""
    found = [
        (interval.mean, metric.label, group.metrics.get(f"{RETRAIN}{name}"))
        for name, metric in METRICS.items()
        if metric.group == ATTACKED and metric.column and (interval := group.metrics.get(name)) is not None
    ]
    if not found:
        return "greedy answers only, nothing harder was tried"
    share, label, retrain = max(found, key=lambda one: one[0])
    beside = "" if retrain is None else f", retrained model {format_percent(round(retrain.mean, 3))}"
    return f"the most that an attack brings back is {format_percent(round(share, 3))} ({label}{beside})"


def _beside(summary: Summary, first: Group, criterion: str) -> list[tuple[str, str]]:
    """Equal weights, and whether the difference is shown; the retrained model."""
    parts = []
    for group in summary.groups:
        values = [text for settings in group.names for text in settings if text.partition("=")[0] == "mapping"]
        if "mapping=uniform" in values and group is not first and criterion in group.metrics:
            parts.append(f"{group.label} {summary.cell_text(group, criterion)}")
    parts = parts[:MOST_NAMED]
    for one in summary.comparisons:
        own = all(any(part in settings for settings in first.names) for part in one.method.split(" "))
        if own and one.baseline == "uniform" and one.metric == criterion:
            difference = difference_text(one.difference, criterion)
            said = "one result" if one.same else f"{one.verdict.value} ({difference}, {one.n} seeds)"
            parts.append(f"against uniform weights: {said}")
            break
    retrain = first.metrics.get(f"{RETRAIN}{criterion}")
    if retrain is not None:
        parts.append(f"retrained model {_short(retrain.mean, kind_of(criterion))}")
    return [("Beside", f"{'; '.join(parts)}.")] if parts else []
