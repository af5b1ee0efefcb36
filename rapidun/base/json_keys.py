"""JSON whose objects name every key once: of a key that stands twice, Python's reader silently takes the last."""

from collections.abc import Sequence
from typing import Any


class DuplicateKey(ValueError):
    """An object has a key twice; `key` is it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} twice")
        self.key = key


def keys_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads(object_pairs_hook=keys_once).

    Raises: DuplicateKey.
    """
    items = dict(pairs)
    if len(items) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return items
