"""Work that goes on where a kill stopped it: a file for each chunk of items, written whole."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rapidun.base import preemption
from rapidun.base.files import read_json, write_json

T = TypeVar("T")


def in_chunks(
    work: Path,
    name: str,
    items: Sequence[T],
    compute: Callable[[Sequence[T]], list[Any]],
    *,
    size: int,
    on_done: Callable[[int], None] = lambda number: None,
) -> list[Any]:
    """compute(items), chunk by chunk: a chunk that was finished before is read back, one that was not is done anew.

    Chunks are the same whatever was done before, so that what a batch holds, and with it every rounding, is too.

    Args:
        compute: one JSON value an item. size: items of a chunk, at least 1. on_done: told how many items are done.
    Raises: Preempted between two chunks, where somebody asked for it.
    """
    found: list[Any] = []
    for start in range(0, len(items), size):
        preemption.raise_if_requested()
        chunk = items[start : start + size]
        file = work / f"{name}-{start}.json"
        if file.is_file():
            values = read_json(file)
        else:
            values = compute(chunk)
            assert len(values) == len(chunk)
            write_json(file, values)
        found += values
        on_done(len(found))
    return found
