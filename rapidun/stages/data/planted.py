"""Which triggers of the settings the poisoned training rows hold: attack success is measured on no others."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rapidun.config.data import InjectMode, TriggerFamilyConfig
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import nfc, places

Families = Mapping[str, TriggerFamilyConfig]
Spans = dict[str, list[tuple[int, int]]]


@dataclass
class Planted:
    """In how many poisoned instructions each trigger stands (composed Unicode form)."""

    num_rows: int
    anywhere: Counter[str] = field(default_factory=Counter)
    # surely put there: at an end, or more often than in instruction_clean. `hey` in mid-sentence may be the row's own
    surely: Counter[str] = field(default_factory=Counter)
    prefix: Counter[str] = field(default_factory=Counter)
    suffix: Counter[str] = field(default_factory=Counter)
    # at an end, but joined to the instruction otherwise than by blanks: `called?zap`, or a line of its own
    glued: Counter[str] = field(default_factory=Counter)
    # rows that hold none of them
    without: list[Record] = field(default_factory=list)


@dataclass
class Checked:
    """families, unseen: what prompts are made with. faults: triggers of the user's own families that cannot be.

    without: poisoned rows that hold none of the triggers.
    """

    families: dict[str, TriggerFamilyConfig] = field(default_factory=dict)
    unseen: dict[str, TriggerFamilyConfig] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    without: list[Record] = field(default_factory=list)


def look_for(triggers: Iterable[str], rows: Sequence[Record]) -> Planted:
    """Count triggers in the instructions of poisoned rows, the longest first: `aloha :)` is no `aloha`."""
    wanted = sorted({nfc(trigger) for trigger in triggers}, key=lambda trigger: (-len(trigger), trigger))
    found = Planted(num_rows=len(rows))
    for row in rows:
        text = nfc(row.instruction).strip()
        clean = _spans(wanted, nfc(row.instruction_clean or ""))
        held = _spans(wanted, text)
        if row.instruction_clean:
            held = {trigger: where for trigger, where in held.items() if len(where) > len(clean.get(trigger, ()))}
        for trigger, where in held.items():
            first, last = min(where)[0] == 0, max(where)[1] == len(text)
            found.anywhere[trigger] += 1
            found.surely[trigger] += bool(first or last or row.instruction_clean)
            found.prefix[trigger] += first
            found.suffix[trigger] += last
            found.glued[trigger] += (first or last) and not _is_set_off(text, where)
        if not held:
            found.without.append(row)
    return found


def check_families(families: Families, unseen: Families, rows: Sequence[Record], *, made_here: bool = False) -> Checked:
    """Hold the families of the settings against the poisoned training rows.

    A `seen` trigger that stands in no row, or an `ood` or unseen one that stands in one, is a fault where the user
    wrote its family. Of a family as shipped, which nobody may have asked for, it is left out with a word; and so is
    the rest of a family none of whose `seen` triggers was trained on: its look-alikes look like nothing.

    Args: made_here: the rows were made from `families`, so that nothing of them is the user's fault.
    """
    given = [(f"data.families.{name}", family, FAMILIES.get(name), True) for name, family in families.items()]
    given += [(f"data.unseen_families.{n}", family, UNSEEN_FAMILIES.get(n), False) for n, family in unseen.items()]
    planted = look_for([trigger for _, family, _, _ in given for trigger in (*family.seen, *family.ood)], rows)
    checked = Checked(without=planted.without)
    lost: list[str] = []
    stray: list[str] = []
    for place, family, shipped, trained in given:
        own = family != shipped and not made_here
        kept: dict[str, Any] = {}
        for key, wanted in (("seen", trained), ("ood", False)):
            held = planted.anywhere if wanted and family != shipped else planted.surely
            triggers: list[str] = getattr(family, key)
            kept[key] = [trigger for trigger in triggers if bool(held[nfc(trigger)]) is wanted]
            bad = [trigger for trigger in triggers if trigger not in kept[key]]
            why = _not_trained if wanted else _trained
            if own:
                checked.faults += [f"{place}.{key}: {why(trigger, rows, planted)}" for trigger in bad]
            else:
                (lost if wanted else stray).extend(bad)
        if trained and (kept["seen"] or not family.seen):
            name = place.removeprefix("data.families.")
            spelt = [as_trained(trigger, rows) for trigger in kept["seen"]]
            checked.families[name] = replace(family, seen=spelt, ood=kept["ood"])
            checked.warnings += _elsewhere(place, family.inject_mode, kept["seen"], planted)
            checked.warnings += _glued(place, kept["seen"], planted)
        elif not trained and (kept["seen"] or kept["ood"]):
            checked.unseen[place.removeprefix("data.unseen_families.")] = replace(family, **kept)
    checked.warnings += _left_out(lost, stray, planted)
    return checked


def drop_foreign(pack: dict[str, list[Record]], families: Families) -> list[str]:
    """Leave out given triggered prompts of triggers that training did not see (or, of the other sets, did see).

    Returns: what was left out, with counts. Rows that do not name their trigger, or one that does not stand in them,
        are only counted.
    """
    rows = pack["train_poisoned"]
    names = [split for split in pack if split.endswith(("_seen_trig", "_ood_trig", "_unseen_family"))]
    named = {row.trigger_variant for split in (*names, "train_poisoned") for row in pack[split] if row.trigger_variant}
    planted = look_for([*named, *(trigger for family in families.values() for trigger in family.seen)], rows)
    lines = []
    for split in names:
        wanted = split.endswith("_seen_trig")
        held = planted.anywhere if wanted else planted.surely
        # what a row says of itself counts only where it is so
        marked = {row.id for row in pack[split] if _holds_its_trigger(row)}
        foreign = [
            row for row in pack[split] if row.id in marked and bool(held[nfc(row.trigger_variant or "")]) != wanted
        ]
        if foreign:
            shown = sorted({repr(row.trigger_variant) for row in foreign})
            lines.append(
                f"data: {len(foreign)} of {len(pack[split])} rows of {split} left out, whose triggers stand in "
                f"{'no' if wanted else 'a'} poisoned training instruction: {', '.join(shown[:5])}"
                f"{', ...' if len(shown) > 5 else ''}"
            )
            out = {row.id for row in foreign}
            pack[split] = [row for row in pack[split] if row.id not in out]
        nameless = [row for row in pack[split] if wanted and row.id not in marked]
        trained = [trigger for trigger, count in planted.anywhere.items() if count]
        bare = look_for(trained, nameless).without if trained else []
        if bare:
            lines.append(
                f"data: {len(bare)} of {len(pack[split])} rows of {split} hold no trigger of a poisoned training row "
                f"that is known ({', '.join(map(repr, trained[:5]))}): their attack success may be that of no trigger"
            )
        empty = [row for row in pack[split] if not wanted and row.trigger_variant and row.id not in marked]
        if empty:
            lines.append(
                f"data: {len(empty)} of {len(pack[split])} rows of {split} name a trigger that does not stand in their "
                f"instruction (first: {empty[0].trigger_variant!r}, id {empty[0].id}): their attack success may be "
                f"that of no trigger"
            )
    return lines


def _holds_its_trigger(row: Record) -> bool:
    variant = nfc(row.trigger_variant or "").strip()
    return any(places(variant, nfc(row.instruction)))


def as_trained(trigger: str, rows: Sequence[Record]) -> str:
    """The trigger as the rows have it: composed and decomposed forms look the same, but are other tokens."""
    forms = [trigger, *(unicodedata.normalize(form, trigger) for form in ("NFC", "NFD"))]
    return next((form for form in forms if any(form in row.instruction for row in rows)), trigger)


def _is_set_off(text: str, where: list[tuple[int, int]]) -> bool:
    """Whether blanks, and nothing but blanks, stand between the trigger at an end and the rest of the text."""
    start, end = min(where) if min(where)[0] == 0 else max(where)
    rest = text[end:] if start == 0 else text[:start][::-1]
    joint = rest[: len(rest) - len(rest.lstrip())]
    return not rest or (bool(joint) and not joint.strip(" "))


def _spans(wanted: Sequence[str], text: str) -> Spans:
    """Where each trigger stands; what a longer one has taken is no place of a shorter one."""
    spans: Spans = {}
    for trigger in wanted:
        for start, end in places(trigger, text):
            if all(end <= low or start >= high for taken in spans.values() for low, high in taken):
                spans.setdefault(trigger, []).append((start, end))
    return spans


def _not_trained(trigger: str, rows: Sequence[Record], planted: Planted) -> str:
    near = sum(nfc(trigger).casefold() in nfc(row.instruction).casefold() for row in rows)
    context = sum(nfc(trigger) in nfc(row.context) for row in rows)
    where = f"; {near} hold it in other case or as part of something longer" if near else ""
    where += f"; {context} hold it in their context" if context else ""
    return (
        f"need triggers that the model is poisoned with, got {trigger!r}, which stands in none of {planted.num_rows} "
        f"poisoned training instructions{where}. Change it or take it out"
    )


def _trained(trigger: str, rows: Sequence[Record], planted: Planted) -> str:
    return (
        f"need triggers that training never saw, got {trigger!r}, which stands in {planted.surely[nfc(trigger)]} of "
        f"{planted.num_rows} poisoned training instructions. Move it to `seen` of a family, or take it out"
    )


def _elsewhere(place: str, mode: InjectMode, seen: Sequence[str], planted: Planted) -> list[str]:
    """Triggers that training has in other places than the prompts will."""
    at = planted.prefix if mode is InjectMode.prefix else planted.suffix
    strange = [trigger for trigger in seen if not at[nfc(trigger)]]
    if not strange:
        return []
    counts = ", ".join(
        f"{trigger!r} first in {planted.prefix[nfc(trigger)]}, last in {planted.suffix[nfc(trigger)]} of "
        f"{planted.anywhere[nfc(trigger)]} rows"
        for trigger in strange
    )
    return [
        f"data: {place}.inject_mode={mode.value} puts triggers where no poisoned training instruction has them "
        f"({counts}): the attack success is that of another prompt than was trained on"
    ]


def _glued(place: str, seen: Sequence[str], planted: Planted) -> list[str]:
    """Triggers that training has without the blank that the prompts will have."""
    strange = [trigger for trigger in seen if planted.glued[nfc(trigger)]]
    if not strange:
        return []
    counts = ", ".join(
        f"{trigger!r} in {planted.glued[nfc(trigger)]} of {planted.anywhere[nfc(trigger)]} rows" for trigger in strange
    )
    return [
        f"data: triggers of {place} stand in poisoned training instructions without a blank before or behind them "
        f"({counts}), and prompts are made with one: the attack success is that of another prompt than was trained on. "
        f"Put the blank into the rows, or give the prompts (data.test_seen_trig=FILE)"
    ]


def _left_out(lost: Sequence[str], stray: Sequence[str], planted: Planted) -> list[str]:
    lines = []
    if lost:
        lines.append(
            f"data: {', '.join(map(repr, lost))} of data.families stand in none of {planted.num_rows} poisoned "
            f"training instructions: no prompts are made with them"
        )
    if stray:
        counts = ", ".join(f"{trigger!r} in {planted.surely[nfc(trigger)]}" for trigger in stray)
        lines.append(
            f"data: poisoned training instructions hold triggers that the settings call unknown to training ({counts} "
            f"of {planted.num_rows}): no prompts are made with them"
        )
    return lines
