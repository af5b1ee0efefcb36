"""Batches of similar lengths under a budget of padded tokens."""

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], *, max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Group rows of similar length so that no padded batch exceeds a token budget.

    Rows are sorted by length (ties by index) and cut greedily: rows * longest <= max_tokens. A row longer than
    the budget makes a batch of its own.

    Args:
        lengths: [num_rows] tokens per row. max_tokens: padded tokens per batch. max_rows: rows per batch.
    Returns: batches of indices into `lengths`; every index occurs once, shortest rows first.
    Raises: ValueError for a budget below 1 or a negative length.
    """
    if max_tokens < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(f"need max_tokens >= 1 and max_rows >= 1, got max_tokens={max_tokens}, max_rows={max_rows}")
    if any(length < 0 for length in lengths):
        raise ValueError("need lengths >= 0")
    batches: list[list[int]] = []
    current: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        # sorted: this row is the longest of the batch so far
        full = (len(current) + 1) * lengths[index] > max_tokens or len(current) == max_rows
        if current and full:
            batches.append(current)
            current = []
        current.append(index)
    if current:
        batches.append(current)
    return batches
