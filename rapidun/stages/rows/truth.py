"""What a pack knows of its own rows: which of them stand in the wrong group."""

from rapidun.stages.rows.records import Record


def is_wrong(record: Record, group: str) -> bool | None:
    """Whether a row is in the wrong group; None where the pack does not say.

    In the forget set a row that is known to be clean is wrong, in the retain set one that is known to be poisoned.

    Args: group: `forget` or `retain`.
    """
    known = record.is_poisoned
    return None if known is None else bool(known) != (group == "forget")
