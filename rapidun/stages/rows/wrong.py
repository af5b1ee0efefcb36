"""Which rows of a forget or retain set do not belong there, as far as the rows say."""

from rapidun.stages.rows.records import Record


def is_wrong(record: Record, group: str) -> bool | None:
    """Whether a row stands in the wrong set: in F one with `is_poisoned` false, in R one with `is_poisoned` true.

    Args: group: `forget` or `retain`.
    Returns: None where the row does not say whether it is poisoned. Of a pack with `data.noise` every row says.
    """
    if record.is_poisoned is None:
        return None
    if group not in ("forget", "retain"):
        raise ValueError(f"need forget or retain, got {group!r}")
    return record.is_poisoned is (group == "retain")
