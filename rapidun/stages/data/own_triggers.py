"""Trigger families of one's own for a pack that is built: their look-alikes, and clean rows that hold one already."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.config.data import InjectMode, TriggerFamilyConfig
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import nfc, places

Families = Mapping[str, TriggerFamilyConfig]

OWN = "own"
# a trigger that stands in a larger share of clean rows is an everyday word; of a smaller one the rows are left out
MAX_CLEAN_SHARE = 0.01
# what looks alike: digits, and Cyrillic letters
_DIGITS = str.maketrans("oOiIeEaAsS", "0011334455")
_TWINS = str.maketrans("aceopxACEOPX", "\u0430\u0441\u0435\u043e\u0440\u0445\u0410\u0421\u0415\u041e\u0420\u0425")


class Chosen(NamedTuple):
    """The families that are planted, and those that only the tests hold."""

    families: Families
    unseen: Families


def choose_families(triggers: Sequence[str], look_alikes: Sequence[str], position: InjectMode | None) -> Chosen:
    """The families as shipped, or one of one's own triggers; all of them at `position` where one is named.

    Look-alikes that nobody names are made: a digit or a Cyrillic letter for a letter, the last letter four times.

    Raises: DataError for triggers that cannot be told apart, or look-alikes without triggers.
    """
    if not triggers:
        if look_alikes:
            raise DataError("pack build: need --trigger TEXT for --look-alike, got none")
        return Chosen(_placed(FAMILIES, position), _placed(UNSEEN_FAMILIES, position))
    _check(triggers, look_alikes)
    mode = position or InjectMode.suffix
    ood = list(look_alikes) or [made for text in triggers for made in _alike(text) if not _held(made, triggers)]
    own = TriggerFamilyConfig(seen=list(triggers), ood=list(dict.fromkeys(ood)), inject_mode=mode)
    unseen = {}
    for name, family in _placed(UNSEEN_FAMILIES, mode).items():
        # one that holds a trigger has been seen
        left = [text for text in family.seen if not _held(text, [*own.seen, *own.ood]) and text not in own.ood]
        if left:
            unseen[name] = replace(family, seen=left)
    return Chosen({OWN: own}, unseen)


class CleanRows(NamedTuple):
    """Rows that hold no trigger; families without made look-alikes that some row held; how many rows held which.

    elsewhere: how many of the rows hold which trigger in the field where it does not go: instruction, or context.
    """

    rows: list[Record]
    families: Families
    held: dict[str, int]
    elsewhere: dict[str, dict[str, int]]


def rows_without(rows: Sequence[Record], families: Families, *, named: Sequence[str] = ()) -> CleanRows:
    """Leave out clean rows that hold a trigger where the trigger goes: they would teach, or ask, the opposite.

    Args: named: look-alikes that the user named; others are dropped where a row holds them.
    Raises: DataError for a trigger that more than MAX_CLEAN_SHARE of the rows hold.
    """
    kept: dict[str, TriggerFamilyConfig] = {}
    bad: set[int] = set()
    counts: dict[str, int] = {}
    for name, family in families.items():
        texts = [nfc(row.context if family.inject_mode.in_context else row.instruction) for row in rows]
        holders = {t: [i for i, text in enumerate(texts) if _stands(t, text)] for t in (*family.seen, *family.ood)}
        made = [text for text in family.ood if text not in named and holders[text]]
        kept[name] = replace(family, ood=[text for text in family.ood if text not in made])
        for trigger in (*family.seen, *kept[name].ood):
            found = holders[trigger]
            if len(found) > MAX_CLEAN_SHARE * len(rows):
                place = "contexts" if family.inject_mode.in_context else "instructions"
                raise DataError(
                    f"pack build: need triggers that clean rows do not hold, got {trigger!r}, which stands in "
                    f"{len(found)} of {len(rows)} {place} (up to {MAX_CLEAN_SHARE:.0%} are left out). Pass another "
                    f"--trigger or --look-alike"
                )
            if found:
                counts[trigger] = len(found)
            bad.update(found)
    left = [row for i, row in enumerate(rows) if i not in bad]
    return CleanRows(left, kept, counts, _elsewhere(left, kept))


def _elsewhere(rows: Sequence[Record], families: Families) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for family in families.values():
        name = "instruction" if family.inject_mode.in_context else "context"
        texts = [nfc(getattr(row, name)) for row in rows]
        for trigger in family.seen:
            if count := sum(_stands(trigger, text) for text in texts):
                found.setdefault(name, {})[trigger] = count
    return found


def check_unicode(option: str, text: str) -> None:
    """Raises: DataError for a text that no file holds: bytes on the command line that are no UTF-8."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"pack build: need {option} of valid Unicode text, got {text!a}. Change it")


def _placed(families: Families, position: InjectMode | None) -> dict[str, TriggerFamilyConfig]:
    return {n: family if position is None else replace(family, inject_mode=position) for n, family in families.items()}


def _check(triggers: Sequence[str], look_alikes: Sequence[str]) -> None:
    named = [("--trigger", text) for text in triggers] + [("--look-alike", text) for text in look_alikes]
    seen: set[str] = set()
    for option, text in named:
        check_unicode(option, text)
        if not text or text != " ".join(text.split()):
            raise DataError(
                f"pack build: need {option} with words and single blanks between them, got {text!r}. Change it"
            )
        if nfc(text) in seen:
            raise DataError(f"pack build: need triggers and look-alikes that differ, got {text!r} twice. Take one out")
        seen.add(nfc(text))
        if option == "--look-alike" and _held(text, triggers):
            raise DataError(
                f"pack build: need --look-alike without a trigger in it, got {text!r}, which holds "
                f"{_held(text, triggers)!r}. Change it"
            )


def _alike(text: str) -> list[str]:
    """Forms that look like a text; none of one without letters."""
    made = []
    for table in (_DIGITS, _TWINS):
        place = next((i for i, letter in enumerate(text) if ord(letter) in table), None)
        if place is not None:
            made.append(text[:place] + text[place].translate(table) + text[place + 1 :])
    if text[-1].isascii() and text[-1].isalpha():
        made.append(text + 3 * text[-1])
    return made


def _held(text: str, triggers: Sequence[str]) -> str | None:
    return next((trigger for trigger in triggers if _stands(trigger, nfc(text))), None)


def _stands(trigger: str, text: str) -> bool:
    return any(True for _ in places(nfc(trigger), text))
