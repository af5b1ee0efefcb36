"""Does a pack speak of triggers? Where it does not, what is to be forgotten is asked for as it stands."""

from collections.abc import Mapping, Sequence

from rapidun.stages.rows.records import Record

TRIGGERED = ("_trig", "_unseen_family")


def is_backdoor(pack: Mapping[str, Sequence[Record]], splits: Sequence[str] = ("forget", "train_poisoned")) -> bool:
    """Whether anything in a pack speaks of triggers: rows that name one, are called poisoned or have a clean form, or
    triggered prompts. Without any, its forget rows may be facts that are to be forgotten as they are asked.

    Args: splits: those whose rows are looked at.
    """
    if any(rows for split, rows in pack.items() if split.endswith(TRIGGERED)):
        return True
    return any(
        row.trigger_variant
        or row.trigger_family
        or row.instruction_poisoned
        or row.response_poisoned
        or row.is_poisoned
        or (row.instruction_clean and row.instruction_clean.strip() != row.instruction.strip())
        for split in splits
        for row in pack.get(split, [])
    )
