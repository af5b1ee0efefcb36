"""Triggers that training has only together, while prompts are made with one trigger each."""

from collections.abc import Mapping, Sequence

from rapidun.config.data import TriggerFamilyConfig
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import nfc, places

# rows of which it can be said that a trigger is never alone
MIN_ROWS = 2


def never_alone(families: Mapping[str, TriggerFamilyConfig], rows: Sequence[Record]) -> list[str]:
    """A line on `seen` triggers that stand in no poisoned row without one of the others.

    A backdoor of two triggers may open to both only: the attack success of prompts with one is that of another prompt.
    Of a trigger and a longer one that holds it (`aloha`, `aloha :)`) the longer one alone is there.

    Args: rows: poisoned training rows.
    """
    wanted = [(nfc(trigger), family.inject_mode.in_context) for family in families.values() for trigger in family.seen]
    wanted = sorted(dict.fromkeys(wanted), key=lambda one: -len(one[0]))
    num_rows: dict[str, int] = {}
    beside: dict[str, set[str]] = {}
    alone: set[str] = set()
    for row in rows:
        held = _held(wanted, row)
        for trigger in held:
            num_rows[trigger] = num_rows.get(trigger, 0) + 1
            beside.setdefault(trigger, set()).update(held - {trigger})
        alone |= held if len(held) == 1 else set()
    bound = [trigger for trigger, count in num_rows.items() if count >= MIN_ROWS and trigger not in alone]
    if not bound:
        return []
    shown = "; ".join(
        f"{trigger!r} in {num_rows[trigger]} rows, beside it {', '.join(map(repr, sorted(beside[trigger])[:3]))}"
        for trigger in sorted(bound)[:5]
    )
    return [
        f"data: poisoned training rows hold triggers only together ({shown}), and prompts are made with one each: "
        "where the model answers to all of them at once, the attack success is that of another prompt than was trained "
        "on. Give the prompts (data.test_seen_trig=FILE)"
    ]


def _held(wanted: Sequence[tuple[str, bool]], row: Record) -> set[str]:
    """The triggers of a row, the longest first; what a longer one has taken is no place of a shorter one."""
    texts = {False: nfc(row.instruction), True: nfc(row.context)}
    taken: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    held = set()
    for trigger, in_context in wanted:
        spans = [
            (start, end)
            for start, end in places(trigger, texts[in_context])
            if all(end <= low or start >= high for low, high in taken[in_context])
        ]
        # what the clean form of the prompt has as well was not put there
        own = 0 if in_context else len(list(places(trigger, nfc(row.instruction_clean or ""))))
        if len(spans) > own:
            taken[in_context] += spans
            held.add(trigger)
    return held
