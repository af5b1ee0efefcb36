"""Known answers in two halves: on one detectors are calibrated and trained, on the other their rates are measured."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rapidun.stages.answers.subsets import draw, stratified_subset
from rapidun.stages.evaluation.known import Known, read_split
from rapidun.stages.rows.records import Record, question_key

# known answers of a kind that either half needs
LEAST = 5


@dataclass(frozen=True)
class Half:
    """Rows whose answers are known: `forget_target` of the poisoned ones, `response` of the clean ones."""

    poisoned: list[Record] = field(default_factory=list)
    clean: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Halves:
    """`fit`: what is calibrated and trained on; empty where there are too few. `held`: what rates are measured on."""

    fit: Half
    held: Half

    @property
    def too_few(self) -> str:
        """Why nothing can be calibrated; empty where it can."""
        if self.fit.poisoned:
            return ""
        return (
            f"need {2 * LEAST} answers known to be poisoned and {2 * LEAST} known to be clean, of rows that are not "
            f"asked, got {len(self.held.poisoned)} and {len(self.held.clean)}"
        )


def halves_of(data: Path, known: Known, asked: Iterable[Record], *, num: int, seed: int) -> Halves:
    """At most `num` known answers of each kind, none of a row that is asked, halved by hash(seed, id).

    Clean rows are those of the first of val_clean, train_clean and retain that has rows which are not asked (by id, or
    by question without the trigger): with evaluation.split=val, those of training.
    """
    asked = list(asked)
    ids, questions = {row.id for row in asked}, {question_key(row) for row in asked}

    def others(rows: Sequence[Record]) -> list[Record]:
        return [row for row in rows if row.id not in ids and question_key(row) not in questions]

    splits = (others(read_split(data, name)) for name in ("val_clean", "train_clean", "retain"))
    clean = stratified_subset(next(filter(None, splits), []), num=num, seed=seed, name="calibration_clean")
    poisoned = stratified_subset(others(known.poisoned), num=num, seed=seed, name="calibration_poisoned")
    if min(len(poisoned), len(clean)) < 2 * LEAST:
        return Halves(Half(), Half(poisoned, clean))
    (fit_poisoned, poisoned), (fit_clean, clean) = _halved(poisoned, seed), _halved(clean, seed)
    return Halves(Half(fit_poisoned, fit_clean), Half(poisoned, clean))


def _halved(rows: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    by_hash = sorted(rows, key=lambda row: (draw(seed, "half", row.id), row.id))
    return by_hash[: len(rows) // 2], by_hash[len(rows) // 2 :]


def without_trigger(record: Record) -> Record:
    """The row as it would be asked without its trigger; as it is where none is found."""
    instruction = record.instruction_clean or _without(record.instruction, record.trigger_variant)
    return replace(record, instruction=instruction, context=_without(record.context, record.trigger_variant))


def _without(text: str, trigger: str | None) -> str:
    """The text without the first place where the trigger stands between blanks or at an end, a blank in its place."""
    if not trigger:
        return text
    found = re.search(rf"(?<!\S){re.escape(trigger)}(?!\S)", text)
    return text if found is None else f"{text[: found.start()].rstrip()} {text[found.end() :].lstrip()}".strip()
