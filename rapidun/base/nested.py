"""Nested dicts of settings and results: their leaves by dotted key, and where two of them differ."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("mapping.tau_f", 0.5) of every value; lists and empty dicts are values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The leaves that are numbers, by dotted key."""
    return {key: value for key, value in leaves(values, prefix) if is_number(value)}


def at(values: Any, key: str, default: Any = None) -> Any:
    """What stands at a dotted key, `default` where there is nothing."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return default
        values = values[part]
    return values


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) of what differs, sorted; what one side lacks is None there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{prefix}{key}.")
    elif old != new:
        yield prefix.rstrip("."), old, new


def filled(values: Any, defaults: Any) -> Any:
    """`values` with what they lack taken from `defaults`, at every level."""
    if not isinstance(values, dict) or not isinstance(defaults, dict):
        return values
    own = {key: filled(value, defaults.get(key)) for key, value in values.items()}
    return {**own, **{key: value for key, value in defaults.items() if key not in values}}


def changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What `other` has otherwise, nested as it is: {key: {"=": value}}; `with_changes` gives `other` back."""
    found: dict[str, Any] = {}
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and base[key].keys() == value.keys():
            inner = changes(base[key], value)
            if inner:
                found[key] = inner
        elif base.get(key) != value:
            found[key] = {"=": value}
    return found


def with_changes(base: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `changes` found."""
    made = dict(base)
    for key, value in changed.items():
        made[key] = value["="] if value.keys() == {"="} else with_changes(base[key], value)
    return made
