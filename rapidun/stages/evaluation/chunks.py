"""Work that goes on where a kill stopped it: a file for each chunk of items, written whole, with a checksum."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rapidun.base import preemption
from rapidun.base.errors import ArtifactError
from rapidun.base.files import fits_its_seal, read_json, sealed, write_json

T = TypeVar("T")


def in_chunks(
    work: Path,
    name: str,
    items: Sequence[T],
    compute: Callable[[Sequence[T]], list[Any]],
    *,
    size: int,
    on_done: Callable[[int], None] = lambda number: None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Any]:
    """compute(items), chunk by chunk: a chunk that was finished before is read back, one that was not is done anew.

    Chunks are the same whatever was done before, so that what a batch holds, and with it every rounding, is too.

    Args:
        compute: one JSON value an item. size: items of a chunk, at least 1. on_done: told how many items are done.
        tell: gets a line for each damaged file.
    Raises: Preempted between two chunks, where somebody asked for it.
    """
    found: list[Any] = []
    for start in range(0, len(items), size):
        preemption.raise_if_requested()
        chunk = items[start : start + size]
        file = work / f"{name}-{start}.json"
        values = _read(file, len(chunk), name=file.name)
        if values is None:
            if file.exists():
                tell(f"{file}: need the {len(chunk)} values that were found, got a damaged file; found anew")
            values = compute(chunk)
            assert len(values) == len(chunk)
            write_json(file, sealed({"name": file.name, "values": values}))
        found += values
        on_done(len(found))
    return found


def _read(file: Path, number: int, *, name: str) -> list[Any] | None:
    """The values of a finished chunk; None where there are none, or damaged ones. Earlier versions wrote a list."""
    try:
        found = read_json(file) if file.is_file() else None
    except ArtifactError:
        return None
    if isinstance(found, dict):
        found = found.get("values") if fits_its_seal(found) and found.get("name") == name else None
    return found if isinstance(found, list) and len(found) == number else None
