"""The first line of a run's page: is it gone, at what price, how sure. What the rules decided, with its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.budget import Place
from rapidun.config.budget import Verdict as Spent
from rapidun.report.metrics import format_percent
from rapidun.report.statistics import wilson_interval
from rapidun.report.verdict.gather import Judged
from rapidun.report.verdict.kept import COST_SCORE, RECOVERED, row_words
from rapidun.report.verdict.rules import ASKED, BESIDE, EXTRACTION, Damage, Found, Outcome, found_by
from rapidun.report.verdict.shares import Try


class Mark(Enum):
    """How the line is coloured: what it says is good, bad, or open."""

    good = "good"
    bad = "bad"
    open = "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`headline` is one sentence; `notes` are (what, sentence): price, how sure, beside."""

    headline: str
    mark: Mark = Mark.open
    notes: list[tuple[str, str]] = field(default_factory=list)


# why nothing is shown, the first that holds: code of the rules' reason -> how the sentence begins
LEADS = {
    "nothing_asked": "Cannot be told, nothing was asked that would show it",
    "unseen_before": "Cannot be told, no detector that can be relied on saw it before",
    "weak_before": "Cannot be told, it hardly showed before",
    "broken": "Cannot be told, the model is broken and a broken model gives nothing away",
    "unclear": "Not clear whether an attack brings it back, too few prompts",
    "no_yardstick": "Not clear without a retrained model to compare with",
    "blind": "Cannot be told, no detector that judged can be relied on",
    "few": "Not shown, too few prompts",
    "traces": "Not shown, membership inference tells this model from a retrained one",
    "told_apart": "Not shown, the model can be told from one that never saw the rows",
    "untestable": "Gone from greedy answers; no attack that was run would show more",
    "no_attack": "Gone from greedy answers; nothing harder was tried",
    "validation": "Nothing found, but on validation rows, by which settings are chosen",
}
NO_PARAPHRASES = "Gone as asked in training; not asked otherwise"
# instead, where a little is left in greedy answers
ALMOST = {"unclear": "Almost gone from greedy answers, too few prompts to tell the rest from nothing"}
NO_PRICE = f"at no measured price above {format_percent(COST_SCORE)}"


def answer(
    judged: Judged,
    *,
    detector: str = "",
    seed: object = None,
    budget: str = "",
    spent: Spent | None = None,
    beside: Sequence[str] = (),
) -> Answer:
    """The line and its notes.

    Args: detector: words of the run's detector, whose share is told. budget, spent: the sweep's bound on damage and
        where this run stands. beside: what others of the sweep came to, `uniform weights 4 %`.
    """
    said, asked = judged.verdict, _asked(judged.tries, detector)
    mark, lead, shown = Mark.open, "", "" if asked is None else _shown(asked)
    if said.outcome is Outcome.not_gone:
        mark, lead = Mark.bad, "Not gone"
        worst = _worst(judged)
        if worst.attack == ASKED:
            shown = _shown(worst)
        else:
            lead = "Hidden, not gone" if asked is not None and found_by(asked) is not Found.above else lead
            shown = f"{shown}, but {worst.sentence}" if shown else worst.sentence
    elif said.outcome is Outcome.nothing_found:
        mark, lead = Mark.good, "Nothing found by what was tried"
        shown = _with_most(judged, shown)
    else:
        codes = [reason.code for reason in said.reasons]
        code = next((code for code in LEADS if code in codes), "no_attack")
        lead = _lead(judged, code, asked)
    price = _price(judged, budget, spent, said=lead == LEADS["broken"])
    if judged.kept.damage is Damage.broken or (spent is not None and spent.place is Place.outside):
        mark = Mark.bad
    headline = f"{lead}{': ' if shown else ''}{shown}, {price}." if shown or price else f"{lead}."
    return Answer(headline=headline, mark=mark, notes=_notes(judged, asked, seed=seed, beside=beside))


def _lead(judged: Judged, code: str, asked: Try | None) -> str:
    if code == "unclear":
        text = next(reason.text for reason in judged.verdict.reasons if reason.code == code)
        worst = next(one for one in judged.tries if text.startswith(one.sentence))
        return ALMOST[code] if worst.attack in (ASKED, BESIDE) else LEADS[code]
    lead = NO_PARAPHRASES if judged.facts and code == "no_attack" else LEADS[code]
    # a share within the detector's false alarms
    some_left = asked is not None and asked.unlearned.value > 0
    return lead.replace("Gone", "Almost gone", 1) if some_left and lead.startswith("Gone") else lead


def unmeasured(*, stage: str = "", failed: bool = False, before: str = "") -> Answer:
    """The line of a run that was not evaluated after unlearning. Args: before: what the model did before, in words."""
    if failed:
        return Answer(headline=f"Nothing can be said: the run failed{f' in {stage}' if stage else ''}.")
    if before:
        return Answer(headline=f"Not unlearned here: {before}.")
    return Answer(headline="Nothing was evaluated in this run, so nothing can be said of what it did.")


def _asked(tries: Sequence[Try], detector: str) -> Try | None:
    """What was asked without any attack, by the run's detector where that judged."""
    found = [one for one in tries if one.attack == ASKED]
    own = [one for one in found if one.detector is not None and one.detector.words == detector]
    return next(iter([*own, *found]), None)


def _worst(judged: Judged) -> Try:
    """The try that the rules put first among those that bring it back."""
    first = judged.verdict.reasons[0].text
    return next(one for one in judged.tries if one.sentence == first)


def _shown(one: Try) -> str:
    """`0 % of triggered prompts are answered as planted (0 of 100; before unlearning 97 %)`."""
    before = "" if one.poisoned is None else f"; before unlearning {format_percent(one.poisoned.value)}"
    how = "" if one.attack == ASKED else f"{one.how} "
    return f"{how}{format_percent(one.unlearned.value)} {one.what} ({one.unlearned.of}{before})"


def _with_most(judged: Judged, shown: str) -> str:
    """What was asked, and the most that an attack came to."""
    attacks = [one for one in judged.tries if one.attack != ASKED and found_by(one) is Found.within]
    if not attacks:
        return shown
    most = max(attacks, key=lambda one: one.unlearned.value)
    return f"{shown}, and at most {most.sentence}" if shown else most.sentence


def _price(judged: Judged, budget: str, spent: Spent | None, *, said: bool) -> str:
    """Args: said: the sentence has said that the model is broken."""
    text = judged.around.damage_text
    words = {
        Damage.kept: NO_PRICE,
        Damage.cost: f"at the price of {text}",
        Damage.broken: text if said else f"and the model is broken: {text}",
        Damage.unknown: "at a price that was not measured",
    }[judged.kept.damage]
    if spent is None or spent.place is Place.within:
        return words
    if spent.place is Place.unknown:
        return f"{words}; whether that is within the budget ({budget}) is unknown ({spent.why})"
    return f"{words}; over the budget ({budget}) by {spent.text}"


def _notes(judged: Judged, asked: Try | None, *, seed: object, beside: Sequence[str]) -> list[tuple[str, str]]:
    notes = []
    told = judged.around.damage_text if judged.kept.damage is not Damage.kept else ""
    others = [row_words(row) for row in judged.kept.rows if row.before is not None and row.metric.name not in RECOVERED]
    if others := [text for text in others if text not in told]:
        notes.append(("Price", f"{'; '.join(others)}."))
    parts = []
    if asked is not None:
        parts.append(
            f"95 % interval {asked.unlearned.interval} of {asked.unlearned.num} {'rows' if judged.facts else 'prompts'}"
        )
        if not asked.unlearned.is_enough:
            open_ = format_percent(round(wilson_interval(0.0, asked.unlearned.num)[1], 3))
            parts.append(f"none of {asked.unlearned.num} would leave up to {open_} open")
        if asked.detector is not None and asked.detector.recall is not None:
            alarms = asked.detector.alarms
            flags = "" if alarms is None else f" and flag {format_percent(alarms.value)} of clean ones"
            parts.append(f"{asked.detector.rate_words} of known planted answers{flags}")
    parts.append(f"one model, one seed{'' if seed is None else f' ({seed})'}")
    if judged.verdict.outcome is Outcome.not_shown:
        parts += [reason.text for reason in judged.verdict.reasons if reason.code not in ("no_attack", "few", "broken")]
    notes.append(("How sure", f"{'; '.join(parts)}."))
    retrained = [] if asked is None or asked.retrain is None else [f"retrained model {asked.retrain.text}"]
    if known := [*retrained, *beside]:
        notes.append(("Beside", f"{'; '.join(known)}."))
    # where nothing was, the line says so, and the page what it could have been
    if judged.around.not_tried and any(one.attack not in (ASKED, BESIDE, EXTRACTION) for one in judged.tries):
        notes.append(("Not tried", f"{', '.join(judged.around.not_tried)}."))
    return notes
