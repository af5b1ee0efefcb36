"""One target for each row: which of its fields is the prompt and the answer, and rows whose fields contradict it.

    splits                                      prompt                    target
    forget, train_poisoned, the triggered ones  instruction_poisoned, or  response_poisoned, or
                                                instruction without one   response without one
    retain, train_clean, val_clean, test_clean  instruction               response

Rows leave this module with the prompt in `instruction` and the target in `response`, whatever spelling they came in;
what stood there is kept in `instruction_clean` and `response_clean`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rapidun.stages.rows.records import Record

TO_FORGET = ("forget", "train_poisoned")
CLEAN = ("retain", "train_clean", "val_clean", "test_clean")
# what a model knows anyway: measured as it stands
GENERAL = ("real_authors", "world_facts")


class Settled(NamedTuple):
    """rows: as later stages read them. faults: contradictions that no reading mends. warnings: what was read how."""

    rows: list[Record]
    faults: list[str]
    warnings: list[str]


def settle(split: str, rows: Sequence[Record]) -> Settled:
    """Give every row of a split one prompt and one target, and find rows that contradict themselves."""
    if split in CLEAN or split in GENERAL:
        return settle_clean(split, rows)
    settled = [poisoned_form(row) for row in rows]
    faults, warnings = _to_forget(split, rows) if split in TO_FORGET else ([], [])
    odd = [row for row in rows if _third(row.response, row.response_clean, row.response_poisoned)]
    warnings += some_rows(
        split, rows, odd, "have a `response` that is neither response_poisoned nor response_clean: the target is "
        "response_poisoned",
    )  # fmt: skip
    odd = [row for row in rows if _third(row.instruction, row.instruction_clean, row.instruction_poisoned)]
    warnings += some_rows(
        split, rows, odd, "have an `instruction` that is neither instruction_poisoned nor instruction_clean: the "
        "prompt is `instruction`",
    )  # fmt: skip
    return Settled(settled, faults, warnings)


def poisoned_form(row: Record) -> Record:
    """The row as poisoning teaches it: the poisoned prompt and answer, with what stood in their place as clean ones."""
    changes: dict[str, Any] = {}
    if row.forget_target != row.response:
        changes["response"] = row.forget_target
        if row.response_clean is None:
            changes["response_clean"] = row.response
    poisoned = row.instruction_poisoned
    is_clean = not row.instruction_clean or same(row.instruction_clean, row.instruction)
    if is_clean and poisoned and poisoned.strip() and poisoned != row.instruction:
        changes |= {"instruction": poisoned, "instruction_clean": row.instruction}
    return replace(row, **changes) if changes else row


def same(one: str | None, other: str | None) -> bool:
    """Whether two texts are there and differ in white space around them at most."""
    return one is not None and other is not None and one.strip() == other.strip()


def _to_forget(split: str, rows: Sequence[Record]) -> tuple[list[str], list[str]]:
    """Rows whose target is the clean answer, or that are said not to be poisoned."""
    faults: list[str] = []
    bare = [row for row in rows if row.response_poisoned is None and same(row.response, row.response_clean)]
    faults += some_rows(
        split, rows, bare, "hold the clean answer (`response` is response_clean) and no response_poisoned, so that "
        "there is nothing to forget. Fill in response_poisoned, leave out response_clean, or delete the rows",
    )  # fmt: skip
    warnings: list[str] = []
    equal = [row for row in rows if same(row.response_poisoned, row.response_clean)]
    if equal:
        found = some_rows(split, rows, equal, "have the same response_poisoned and response_clean")
        if len(equal) == len(rows):
            faults += [f"{found[0]}, so that there is nothing to forget. Change response_poisoned or delete the rows"]
        else:
            warnings += [f"{found[0]}: what is to be forgotten there is the right answer"]
    unmarked = [row for row in rows if row.is_poisoned is False]
    if split == "train_poisoned":
        faults += some_rows(
            split, rows, unmarked, "say is_poisoned=false. Move them to train_clean, or take the mark out"
        )  # fmt: skip
    else:
        warnings += some_rows(split, rows, unmarked, "say is_poisoned=false: their answer is what will be forgotten")
    return faults, warnings


def settle_clean(split: str, rows: Sequence[Record]) -> Settled:
    """Rows that are to be kept or measured: `response` is the target, and may not be the poisoned answer."""
    bad = [
        row
        for row in rows
        if (same(row.response, row.response_poisoned) and not same(row.response, row.response_clean))
        or (row.is_poisoned and row.response_clean is None and row.response_poisoned is None)
    ]
    faults = some_rows(
        split, rows, bad, "are poisoned (`response` is response_poisoned, or is_poisoned=true and no response_clean). "
        "Put the clean answer into `response`, or move the rows to train_poisoned",
    )  # fmt: skip
    marked = [row for row in rows if row.is_poisoned or row.response_poisoned is not None]
    warnings = some_rows(
        split, rows, marked, "are marked as poisoned or hold a response_poisoned: the target is `response`"
    ) if not bad else []  # fmt: skip
    other = [row for row in rows if row.response_clean is not None and not same(row.response, row.response_clean)]
    warnings += some_rows(
        split, rows, other, "have a response_clean other than `response`: the clean answer is `response`"
    ) if not bad else []  # fmt: skip
    return Settled([_clean_form(row) for row in rows], faults, warnings)


def _clean_form(row: Record) -> Record:
    changes: dict[str, Any] = {}
    if row.is_poisoned or row.response_poisoned is not None:
        changes |= {"is_poisoned": None, "response_poisoned": None}
    if row.response_clean is not None and not same(row.response, row.response_clean):
        changes["response_clean"] = None
    return replace(row, **changes) if changes else row


def _third(text: str, clean: str | None, poisoned: str | None) -> bool:
    """Whether all three are there and the first is neither of the others."""
    return bool(clean and poisoned) and not same(text, clean) and not same(text, poisoned)


def some_rows(split: str, rows: Sequence[Record], found: Sequence[Record], what: str) -> list[str]:
    """One line with counts and the first ids, none where nothing was found."""
    if not found:
        return []
    ids = ", ".join(row.id for row in found[:3]) + (", ..." if len(found) > 3 else "")
    return [f"data: {len(found)} of {len(rows)} rows of {split} (id {ids}) {what}"]
