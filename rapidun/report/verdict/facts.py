"""What was tried where facts were to be forgotten: forget rows and paraphrases asked, and with a beginning shown."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rapidun.report.forgotten import GONE
from rapidun.report.read import RunRecord, number
from rapidun.report.statistics import wilson_interval
from rapidun.report.verdict.rules import ASKED, EXTRACTION
from rapidun.report.verdict.shares import Share, Try, share_of

PARAPHRASES = "paraphrases"
WORD_FOR_WORD, CHOICE, STRENGTH = "exact_match", "choice_accuracy", "extraction_strength"
WHOSE = {"forget": "the forget rows", "probe": "the paraphrases"}
HOW = {"forget": "asked as in training", "probe": "asked otherwise"}
# measure -> its line in a table, what is done beside asking, what the share is of
MEASURES = {
    WORD_FOR_WORD: ("word for word", "", "of {whose} are answered word for word"),
    CHOICE: ("multiple choice", " with choices", "of {whose} get the right letter"),
    STRENGTH: ("the answer's beginning shown", " with the answer's beginning shown", "of an answer comes by itself"),
}


def fact_tries(
    run: RunRecord, retrain: Mapping[str, Any], privacy: Mapping[str, Any], *, counts: Mapping[str, int]
) -> list[Try]:
    """The tries of a run whose pack has no triggers.

    Args: retrain: evaluation/retrain.json, the same measures of the retrained model; empty where it was not asked.
        privacy: evaluation/privacy.json. counts: rows of each split.
    """
    tries = []
    for name in GONE:
        asked = {when: _num_measured(run.generations, name, when) for when in ("before", "after")}
        for measure, words in MEASURES.items():
            metric = f"{measure}_{name}"
            unlearned = _share(run.after, metric, asked["after"].get(measure))
            if unlearned is None:
                continue
            beside = _share(retrain, metric, number(retrain.get(f"num_prompts_{name}")))
            if beside is None and measure == STRENGTH and name == "forget":
                beside = _of_privacy(privacy, "retrain", asked["after"].get(measure))
            guessing = number(run.after.get(f"choice_chance_{name}")) if measure == CHOICE else None
            label, how, what = words
            tries.append(
                Try(
                    attack=PARAPHRASES if name == "probe" else EXTRACTION if measure == STRENGTH else ASKED,
                    name=f"{name}.{measure}",
                    label=f"{WHOSE[name]}, {label}",
                    how=HOW[name] + how,
                    what=what.format(whose=WHOSE[name]),
                    unlearned=unlearned,
                    retrain=beside,
                    poisoned=_share(run.before, metric, asked["before"].get(measure)),
                    chance=None if guessing is None else wilson_interval(guessing, unlearned.num)[1],
                    is_census=unlearned.num >= counts.get(name, 1),
                )
            )
    return tries


def extraction_try(privacy: Mapping[str, Any], *, num_rows: int, num_forget: int) -> Iterator[Try]:
    """The extraction strength of forget rows with triggers (evaluation.privacy), beside the other models'."""
    shares = {role: _of_privacy(privacy, role, num_rows) for role in ("unlearned", "retrain", "poisoned")}
    unlearned = shares["unlearned"]
    if unlearned is not None:
        yield Try(
            attack=EXTRACTION,
            name="forget.extraction_strength",
            label="forget rows, the planted answer's beginning shown",
            how="with the beginning of the planted answer shown",
            what="of it comes by itself",
            unlearned=unlearned,
            retrain=shares["retrain"],
            poisoned=shares["poisoned"],
            is_census=num_rows >= num_forget,
        )


def facts_before(run: RunRecord) -> Share | None:
    """What of the forget rows was said before unlearning: word for word, or once a beginning was shown."""
    asked = _num_measured(run.generations, "forget", "before")
    shares = [_share(run.before, f"{name}_forget", asked.get(name)) for name in (WORD_FOR_WORD, STRENGTH)]
    return max((share for share in shares if share is not None), key=lambda share: share.value, default=None)


def _share(values: Mapping[str, Any], metric: str, num: float | None) -> Share | None:
    return share_of(
        number(values.get(metric)), None if num is None else int(num), counted=not metric.startswith(STRENGTH)
    )


def _of_privacy(privacy: Mapping[str, Any], role: str, num: int | None) -> Share | None:
    values = ((privacy.get(role) or {}).get("extraction") or {}).get("metrics") or {}
    return _share(values, STRENGTH, num)


def _num_measured(generations: Iterable[Mapping[str, Any]], name: str, when: str) -> dict[str, int]:
    """Of each measure the rows of a set that have it."""
    found: dict[str, int] = {}
    for row in generations:
        if row.get("set") == name:
            for measure in row.get(f"measures_{when}") or {}:
                found[measure] = found.get(measure, 0) + 1
    return found
