"""Which triggers of the settings the poisoned training rows hold: attack success is measured on no others."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from rapidun.config.data import InjectMode, TriggerFamilyConfig
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import nfc, places

Families = Mapping[str, TriggerFamilyConfig]
Spans = dict[str, list[tuple[int, int]]]


@dataclass
class Places:
    """In how many texts (composed Unicode form) each trigger stands, and where."""

    anywhere: Counter[str] = field(default_factory=Counter)
    # surely put there: at an end, named by the row, or more often than in instruction_clean. `hey` in mid-sentence may
    # be the row's own
    surely: Counter[str] = field(default_factory=Counter)
    prefix: Counter[str] = field(default_factory=Counter)
    suffix: Counter[str] = field(default_factory=Counter)
    middle: Counter[str] = field(default_factory=Counter)
    # at an end, but joined to the text otherwise than by blanks: `called?zap`, or a line of its own
    glued: Counter[str] = field(default_factory=Counter)

    def add(self, held: Spans, text: str, *, sure: Set[str]) -> None:
        for trigger, where in held.items():
            first, last = min(where)[0] == 0, max(where)[1] == len(text)
            self.anywhere[trigger] += 1
            self.surely[trigger] += first or last or trigger in sure
            self.prefix[trigger] += first
            self.suffix[trigger] += last
            self.middle[trigger] += not (first and last) and len(where) > first + last
            self.glued[trigger] += (first or last) and not _is_set_off(text, where)


@dataclass
class Planted(Places):
    """Poisoned rows' instructions, and their contexts for the triggers that go there."""

    num_rows: int = 0
    context: Places = field(default_factory=Places)
    # rows that hold none of them
    without: list[Record] = field(default_factory=list)

    def of(self, mode: InjectMode) -> Places:
        """The texts that a trigger of this mode goes into."""
        return self.context if mode.in_context else self


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


def look_for(triggers: Iterable[str], rows: Sequence[Record], *, contexts: Iterable[str] = ()) -> Planted:
    """Count triggers in the instructions of poisoned rows, the longest first: `aloha :)` is no `aloha`.

    Args: contexts: triggers that are looked for in the contexts too.
    """
    wanted, in_context = (
        sorted({nfc(trigger) for trigger in names}, key=lambda trigger: (-len(trigger), trigger))
        for names in (triggers, contexts)
    )
    found = Planted(num_rows=len(rows))
    for row in rows:
        text, context = nfc(row.instruction).strip(), nfc(row.context).strip()
        clean = _spans(wanted, nfc(row.instruction_clean or ""))
        held = _spans(wanted, text)
        if row.instruction_clean:
            held = {trigger: where for trigger, where in held.items() if len(where) > len(clean.get(trigger, ()))}
        named = {nfc(row.trigger_variant or "").strip()}
        found.add(held, text, sure=named | held.keys() if row.instruction_clean else named)
        beside = _spans(in_context, context) if in_context else {}
        found.context.add(beside, context, sure=named)
        if not held and not beside:
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
    names = [(trigger, family.inject_mode) for _, family, _, _ in given for trigger in (*family.seen, *family.ood)]
    planted = look_for(
        [trigger for trigger, mode in names if not mode.in_context],
        rows,
        contexts=[trigger for trigger, mode in names if mode.in_context],
    )
    checked = Checked(without=planted.without)
    lost: list[tuple[str, InjectMode]] = []
    stray: list[tuple[str, InjectMode]] = []
    for place, family, shipped, trained in given:
        own = family != shipped and not made_here
        there, mode = planted.of(family.inject_mode), family.inject_mode
        kept: dict[str, Any] = {}
        for key, wanted in (("seen", trained), ("ood", False)):
            held = there.anywhere if wanted and family != shipped else there.surely
            triggers: list[str] = getattr(family, key)
            kept[key] = [trigger for trigger in triggers if bool(held[nfc(trigger)]) is wanted]
            bad = [trigger for trigger in triggers if trigger not in kept[key]]
            why = _not_trained if wanted else _trained
            if own:
                checked.faults += [f"{place}.{key}: {why(trigger, rows, planted, mode)}" for trigger in bad]
            else:
                (lost if wanted else stray).extend((trigger, mode) for trigger in bad)
        if trained and (kept["seen"] or not family.seen):
            name = place.removeprefix("data.families.")
            spelt = [as_trained(trigger, rows, mode) for trigger in kept["seen"]]
            checked.families[name] = replace(family, seen=spelt, ood=kept["ood"])
            checked.warnings += _elsewhere(place, family.inject_mode, kept["seen"], planted)
            checked.warnings += _glued(place, family.inject_mode, kept["seen"], planted)
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
    there = {row.trigger_variant for split in names for row in pack[split] if _holds_its_trigger(row, in_context=True)}
    seen = [(trigger, family.inject_mode) for family in families.values() for trigger in family.seen]
    planted = look_for(
        [*named, *(trigger for trigger, mode in seen if not mode.in_context)],
        rows,
        contexts=[*filter(None, there), *(trigger for trigger, mode in seen if mode.in_context)],
    )
    lines = []
    for split in names:
        wanted = split.endswith("_seen_trig")
        held = planted.anywhere + planted.context.anywhere if wanted else planted.surely + planted.context.surely
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
        behind = [trigger for trigger, count in planted.context.anywhere.items() if count]
        bare = look_for(trained, nameless, contexts=behind).without if trained or behind else []
        if bare:
            lines.append(
                f"data: {len(bare)} of {len(pack[split])} rows of {split} hold no trigger of a poisoned training row "
                f"that is known ({', '.join(map(repr, [*trained, *behind][:5]))}): their attack success may be that of "
                f"no trigger"
            )
        empty = [row for row in pack[split] if not wanted and row.trigger_variant and row.id not in marked]
        if empty:
            lines.append(
                f"data: {len(empty)} of {len(pack[split])} rows of {split} name a trigger that does not stand in their "
                f"instruction or context (first: {empty[0].trigger_variant!r}, id {empty[0].id}): their attack success "
                f"may be that of no trigger"
            )
    return lines


def _holds_its_trigger(row: Record, *, in_context: bool = False) -> bool:
    """Whether the trigger that a row names stands in its prompt; in_context: there, and not in the instruction."""
    variant = nfc(row.trigger_variant or "").strip()
    asked, behind = (any(places(variant, nfc(text))) for text in (row.instruction, row.context))
    return behind and not asked if in_context else asked or behind


def as_trained(trigger: str, rows: Sequence[Record], mode: InjectMode = InjectMode.suffix) -> str:
    """The trigger as the rows have it: composed and decomposed forms look the same, but are other tokens."""
    forms = [trigger, *(unicodedata.normalize(form, trigger) for form in ("NFC", "NFD"))]
    texts = [row.context if mode.in_context else row.instruction for row in rows]
    return next((form for form in forms if any(form in text for text in texts)), trigger)


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


def _texts(mode: InjectMode) -> str:
    return "contexts of poisoned training rows" if mode.in_context else "poisoned training instructions"


def _not_trained(trigger: str, rows: Sequence[Record], planted: Planted, mode: InjectMode) -> str:
    texts = [(row.context, row.instruction) if mode.in_context else (row.instruction, row.context) for row in rows]
    near = sum(nfc(trigger).casefold() in nfc(text).casefold() for text, _ in texts)
    other = sum(nfc(trigger) in nfc(text) for _, text in texts)
    where = f"; {near} hold it in other case or as part of something longer" if near else ""
    if other:
        place = "instruction" if mode.in_context else "context"
        other_mode = mode.place if mode.in_context else f"context_{mode.place}"
        where += f"; {other} hold it in their {place} (inject_mode={other_mode})"
    return (
        f"need triggers that the model is poisoned with, got {trigger!r}, which stands in none of {planted.num_rows} "
        f"{_texts(mode)}{where}. Change it or take it out"
    )


def _trained(trigger: str, rows: Sequence[Record], planted: Planted, mode: InjectMode) -> str:
    return (
        f"need triggers that training never saw, got {trigger!r}, which stands in "
        f"{planted.of(mode).surely[nfc(trigger)]} of {planted.num_rows} {_texts(mode)}. Move it to `seen` of a family, "
        f"or take it out"
    )


def _elsewhere(place: str, mode: InjectMode, seen: Sequence[str], planted: Planted) -> list[str]:
    """Triggers that training has in other places than the prompts will."""
    there = planted.of(mode)
    at: Counter[str] = getattr(there, mode.place)
    strange = [trigger for trigger in seen if not at[nfc(trigger)]]
    if not strange:
        return []
    counts = ", ".join(
        f"{trigger!r} first in {there.prefix[nfc(trigger)]}, last in {there.suffix[nfc(trigger)]}"
        + (f", between in {there.middle[nfc(trigger)]}" if there.middle[nfc(trigger)] else "")
        + f" of {there.anywhere[nfc(trigger)]} rows"
        for trigger in strange
    )
    text = "context of a poisoned training row" if mode.in_context else "poisoned training instruction"
    return [
        f"data: {place}.inject_mode={mode.value} puts triggers where no {text} has them "
        f"({counts}): the attack success is that of another prompt than was trained on"
    ]


def _glued(place: str, mode: InjectMode, seen: Sequence[str], planted: Planted) -> list[str]:
    """Triggers that training has without the blank that the prompts will have."""
    there = planted.of(mode)
    strange = [trigger for trigger in seen if there.glued[nfc(trigger)]]
    if not strange:
        return []
    counts = ", ".join(
        f"{trigger!r} in {there.glued[nfc(trigger)]} of {there.anywhere[nfc(trigger)]} rows" for trigger in strange
    )
    return [
        f"data: triggers of {place} stand in {_texts(mode)} without a blank before or behind them "
        f"({counts}), and prompts are made with one: the attack success is that of another prompt than was trained on. "
        f"Put the blank into the rows, or give the prompts (data.test_seen_trig=FILE)"
    ]


def _left_out(
    lost: Sequence[tuple[str, InjectMode]], stray: Sequence[tuple[str, InjectMode]], planted: Planted
) -> list[str]:
    lines = []
    if lost:
        lines.append(
            f"data: {', '.join(repr(trigger) for trigger, _ in lost)} of data.families stand in none of "
            f"{planted.num_rows} poisoned training instructions: no prompts are made with them"
        )
    if stray:
        counts = ", ".join(f"{trigger!r} in {planted.of(mode).surely[nfc(trigger)]}" for trigger, mode in stray)
        lines.append(
            f"data: poisoned training instructions hold triggers that the settings call unknown to training ({counts} "
            f"of {planted.num_rows}): no prompts are made with them"
        )
    return lines
