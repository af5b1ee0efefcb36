"""What was kept: the measures of what unlearning should leave alone, before and after, and one sentence on them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rapidun.report.forgotten import FACTS, GONE
from rapidun.report.metrics import LM_EVAL, Kind
from rapidun.report.tables import MetricRow
from rapidun.report.verdict.rules import Damage

# perplexity may rise, and a score or share fall, by so much before it counts as a cost
COST_PERPLEXITY, COST_SCORE = 1.02, 0.02
# and so that the model counts as broken: perplexity doubled, or half of a score of at least 0.1 gone
BROKEN_PERPLEXITY, BROKEN_SCORE, WORTH = 2.0, 0.5, 0.1
ON_CLEAN = ("exact_match_clean", "rougeL_clean", "ppl_clean")
# what triggered prompts get instead: shown, and no measure of what was kept
RECOVERED = ("exact_match_recovered", "rougeL_recovered")
ON_FACTS = tuple(
    f"{measure}_{name}"
    for name in FACTS
    if name not in GONE
    for measure in ("exact_match", "rougeL", "probability", "choice_accuracy")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    damage: Damage
    sentence: str
    rows: list[MetricRow]


def kept(rows: Sequence[MetricRow]) -> Kept:
    """Judge the lines of the before/after table that say what stayed.

    Broken where one of them is; a cost where one went beyond its bound; kept where all are within.
    """
    shown = [row for row in rows if row.metric.name in (*ON_CLEAN, *RECOVERED, *ON_FACTS) or _is_benchmark(row)]
    judged = [row for row in shown if row.metric.name not in RECOVERED and row.before is not None]
    if not judged:
        return Kept(damage=Damage.unknown, sentence="What was kept was not measured before and after.", rows=shown)
    found = {row.metric.name: _damage(row) for row in judged}
    worst = next(what for what in (Damage.broken, Damage.cost, Damage.kept) if what in found.values())
    named = [row for row in judged if found[row.metric.name] is worst]
    words = "; ".join(row_words(row) for row in named)
    beginnings = {Damage.kept: "Kept", Damage.cost: "At a cost", Damage.broken: "Broken"}
    return Kept(damage=worst, sentence=f"{beginnings[worst]}: {words}.", rows=shown)


def _damage(row: MetricRow) -> Damage:
    if row.after is None:
        return Damage.broken  # no finite number, or nothing that could be answered
    before, after = row.before or 0.0, row.after
    if row.metric.kind is Kind.perplexity:
        if before <= 0:
            return Damage.kept
        broken, cost = after / before >= BROKEN_PERPLEXITY, after / before > COST_PERPLEXITY
    elif row.metric.better > 0:
        broken = before >= WORTH and after <= before * BROKEN_SCORE
        cost = before - after > COST_SCORE
    else:
        broken, cost = False, after - before > COST_SCORE * abs(before)
    return Damage.broken if broken else Damage.cost if cost else Damage.kept


def row_words(row: MetricRow) -> str:
    """`exact match of clean prompts 0.980 before, 0.970 after`."""
    of = "" if _is_benchmark(row) else f" of {_whose(row)}"
    if row.after is None:
        return f"{row.metric.label}{of} {row.before_text} before, no finite number after"
    change = f", {row.change_text}" if row.metric.kind is Kind.perplexity else ""
    return f"{row.metric.label}{of} {row.before_text} before, {row.after_text} after{change}"


def _whose(row: MetricRow) -> str:
    if row.metric.name in ON_CLEAN:
        return "held-out answers" if row.metric.kind is Kind.perplexity else "clean prompts"
    return FACTS.get(row.metric.prompts, row.metric.prompts)


def _is_benchmark(row: MetricRow) -> bool:
    return row.metric.name.startswith(LM_EVAL)
