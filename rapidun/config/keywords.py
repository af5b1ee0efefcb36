"""Settings given in Python, as the overrides that would be typed: `run(["mapping=uniform"], seed=1)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from os import PathLike, fspath
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.nested import differences
from rapidun.config import keys
from rapidun.config.plain import from_plain, plain
from rapidun.config.quoting import quoted
from rapidun.config.run import RunConfig


def overrides_of(name: str, overrides: object, settings: Mapping[str, Any], *, swept: bool = False) -> list[str]:
    """What would be typed.

    Args:
        name: of the function, for messages. overrides: as on the command line. settings: `seed=1`,
            `unlearning={"learning_rate": 1e-3}`, `**{"mapping.tau_f": 0.5}`. swept: tuples and ranges are values to
            try one after the other.
    Raises: ConfigError for anything but a list of texts, a key given twice, a value that no setting can have.
    """
    if isinstance(overrides, str | bytes):
        text = overrides if isinstance(overrides, str) else overrides.decode(errors="replace")
        raise ConfigError(
            f"rapidun.{name}: need a list of overrides, got the text {text!r}. Pass rapidun.{name}([{text!r}])"
        )
    if isinstance(overrides, Mapping) or not isinstance(overrides, Sequence):
        raise ConfigError(
            f"rapidun.{name}: need a list of overrides such as ['mapping=uniform', 'seed=1'], got {overrides!r:.200}. "
            f"Settings of a dict are given as rapidun.{name}(**settings)"
        )
    odd = [one for one in overrides if not isinstance(one, str)]
    if odd:
        raise ConfigError(
            f"rapidun.{name}: need overrides that are texts such as 'seed=1', got {odd[0]!r:.200} among them"
        )
    typed = list(overrides)
    there = {text.lstrip("+~").partition("=")[0] for text in typed}
    for key, value in _leaves(settings):
        if key in there:
            raise ConfigError(f"rapidun.{name}: need {key} once, got it in the list and as a keyword")
        typed.append(f"{key}={_values(name, key, value) if swept else _value(name, key, value)}")
    return typed


def overrides_of_config(cfg: RunConfig, *, defaults: RunConfig) -> tuple[RunConfig, list[str]]:
    """A configuration made or changed in Python: a checked copy, and what would be typed for it.

    Raises: ConfigError with every fault.
    """
    values = plain(cfg)
    checked = from_plain(values)
    typed = [f"{key}={_value('run', key, value)}" for key, _, value in differences(plain(defaults), values)]
    return checked, typed


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values; a dict for a section is its keys."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and is_dataclass(keys.required(keys.find(key))):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _values(name: str, key: str, value: Any) -> str:
    if isinstance(value, tuple | range):
        if not value:
            raise ConfigError(f"rapidun.{name}: need a value at least for {key}, got an empty {type(value).__name__}")
        return ",".join(_value(name, key, one) for one in value)
    return _value(name, key, value)


def _value(name: str, key: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return quoted(value.name)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PathLike):
        return quoted(str(fspath(value)))
    if isinstance(value, list):
        return f"[{','.join(_value(name, key, one) for one in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{quoted(str(at))}:{_value(name, key, one)}" for at, one in value.items()) + "}"
    more = " (several values of a key are for rapidun.sweep)" if isinstance(value, tuple | range) else ""
    raise ConfigError(
        f"rapidun.{name}: need text, a number, true or false, None, a path, a list or a dict for {key}, got "
        f"{value!r:.200}{more}"
    )
