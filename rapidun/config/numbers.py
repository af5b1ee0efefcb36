"""Every setting that is a number is a finite one: one rule for all sections, which need not say so each."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

# no setting of ours is of this size; squares of it, and products with counts, still fit a float
MOST = 1e100


def number_faults(cfg: Any) -> list[str]:
    """A fault for each number of a configuration, however deep, that is NaN, infinite or beyond MOST."""
    return [
        f"{key}: need a finite number of size at most {MOST:g}, got {value}. Pass {key}=..."
        for key, value in _numbers(cfg, "")
        if not math.isfinite(value) or abs(value) > MOST
    ]


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if is_dataclass(value):
        for one in fields(value):
            yield from _numbers(getattr(value, one.name), f"{key}.{one.name}" if key else one.name)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, float):
        yield key, value
