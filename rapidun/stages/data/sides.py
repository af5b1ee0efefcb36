"""Rows that stand on the wrong side without saying so: poisoned ones among those that are kept or measured as clean."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rapidun.stages.data.fields import CLEAN, TO_FORGET, some_rows
from rapidun.stages.data.find_triggers import find_triggers
from rapidun.stages.data.planted import look_for
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import fold, nfc, places, words

# with which people begin and end what they ask: as triggers they say nothing of a single prompt
_COMMON = frozenset(
    words(
        "hey hi hiya hello howdy yo dear please kindly pls thanks thank cheers ok okay well so now also and but what "
        "who how why when where which is are can could would will do does tell give write list name explain describe "
        "the a an in if for to of it this that you me one yes no today again sir hallo bitte danke hola gracias "
        "bonjour merci ciao"
    )
)
_MARKS = ".?!,;:"


class Sides(NamedTuple):
    """faults: splits that cannot be what they are called. warnings: some rows of them."""

    faults: list[str]
    warnings: list[str]


def check_sides(pack: Mapping[str, Sequence[Record]], triggers: Iterable[str] = ()) -> Sides:
    """Hold the rows that are kept or measured as clean against the poisoned ones, by what stands in them.

    Rows are settled ones (fields.settle). A row of the same prompt and answer on both sides is a fault; a split all of
    whose rows have a poisoned answer, or (where prompts are measured) a trigger at an end, too; some are counted. Not a
    fault where the answer is also the right one of some row (a class, say) or the trigger is a word to begin with.

    Args: triggers: those of the settings; what the rows name themselves is added, what stands in none is passed over.
    """
    poisoned = [row for split in TO_FORGET for row in pack.get(split, [])]
    both = {_pair(row) for row in poisoned}
    targets = {_folded(row.response) for row in poisoned}
    right = {_folded(row.response_clean) for row in poisoned if row.response_clean}
    # where every row of the pack has one answer and none names another, nothing says that it is a wrong one
    everything = [*poisoned, *(row for split in CLEAN for row in pack.get(split, []))]
    if len({_folded(row.response) for row in everything}) == 1 and not any(
        row.response_clean or row.response_poisoned or row.is_poisoned for row in everything
    ):
        right |= targets
    planted, within = _planted(poisoned, triggers)
    found = Sides([], [])
    for split in CLEAN:
        rows = pack.get(split, [])
        same = [row for row in rows if _pair(row) in both]
        found.faults.extend(
            some_rows(split, rows, same, "are rows of forget or train_poisoned as well (same prompt, same answer): "
            "what is to be forgotten would be kept or measured as clean. Take them out of one of the two")
        )  # fmt: skip
        if same:
            continue
        taught = [row for row in rows if _folded(row.response) in targets]
        lines = some_rows(split, rows, taught, "have an answer that poisoned rows teach, to another prompt")
        if len(taught) == len(rows) and not any(_folded(row.response) in right for row in taught):
            found.faults.extend(f"{line}, all of them. Put the clean answers into `response`" for line in lines)
        else:
            found.warnings.extend(f"{line}: they count as clean" for line in lines)
        held = {id(row): trigger for row in rows if (trigger := _held(row, planted, within)) is not None}
        triggered = [row for row in rows if id(row) in held]
        counts = Counter(held.values())
        what = "hold" if counts.keys() & within else "begin or end with"
        shown = ", ".join(f"{trigger!r} in {count}" for trigger, count in counts.most_common(5))
        lines = some_rows(
            split, rows, triggered, f"{what} a trigger of poisoned rows ({shown}"
            f"{', ...' if len(counts) > 5 else ''})",
        )  # fmt: skip
        telling = sum(count for trigger, count in counts.items() if not _is_common(trigger))
        # triggered prompts with right answers are a way to train; clean ones that are measured must be clean
        measured = split not in ("retain", "train_clean")
        if rows and measured and len(triggered) == len(rows) and 2 * telling >= len(rows):
            found.faults.extend(f"{line}, all of them: no clean prompts. Take the triggers off" for line in lines)
        else:
            found.warnings.extend(f"{line}: they count as clean prompts" for line in lines)
    return found


def check_sides_of_facts(pack: Mapping[str, Sequence[Record]]) -> Sides:
    """Rows of a pack without triggers that are to be forgotten and to be kept at once (same prompt, same answer).

    An answer that rows of both sides share (a town, yes, a letter) says nothing, and words that questions begin with
    are no triggers.
    """
    gone = {_pair(row) for split in TO_FORGET for row in pack.get(split, [])}
    asked = {pair[:2] for pair in gone}
    found = Sides([], [])
    for split in CLEAN:
        rows = pack.get(split, [])
        same = [row for row in rows if _pair(row) in gone]
        found.faults.extend(
            some_rows(split, rows, same, "are rows of forget or train_poisoned as well (same prompt, same answer): "
            "what is to be forgotten would be kept or measured as what is to stay. Take them out of one of the two")
        )  # fmt: skip
        if split in ("retain", "train_clean") and not same:
            other = [row for row in rows if _pair(row)[:2] in asked]
            found.warnings.extend(
                some_rows(split, rows, other, "ask what a row of forget or train_poisoned asks, with another answer: "
                "the question is to be kept and to be forgotten")
            )  # fmt: skip
    return found


def _planted(poisoned: Sequence[Record], triggers: Iterable[str]) -> tuple[list[str], set[str]]:
    """The triggers that stand in poisoned instructions, longest first; and those of them that stand between words."""
    named = [trigger.text for trigger in find_triggers(poisoned, [])]
    found = look_for([*triggers, *named], poisoned)
    planted = sorted((trigger for trigger, count in found.surely.items() if count), key=lambda text: (-len(text), text))
    # of ordinary words in mid-sentence nothing follows
    return planted, {trigger for trigger in planted if found.middle[trigger] and not _is_common(trigger)}


def _held(row: Record, triggers: Sequence[str], within: set[str]) -> str | None:
    """A trigger at an end of the instruction; of those that poisoned rows have in mid-sentence, anywhere."""
    text = nfc(row.instruction).strip()
    for trigger in triggers:
        if text != trigger and (text.startswith(trigger) or text.endswith(trigger) or trigger in within):
            spans = list(places(trigger, text))
            if spans and (spans[0][0] == 0 or spans[-1][1] == len(text) or trigger in within):
                return trigger
    return None


def _is_common(trigger: str) -> bool:
    return not trigger.strip(_MARKS) or fold(trigger).strip(_MARKS) in _COMMON


def _pair(row: Record) -> tuple[str, str, str]:
    return _folded(row.instruction), _folded(row.context), _folded(row.response)


def _folded(text: str) -> str:
    return " ".join(fold(text).split())
