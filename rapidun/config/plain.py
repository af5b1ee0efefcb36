"""Resolved configurations as plain values: YAML for people, JSON for workers, and back into a checked RunConfig."""

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, cast, get_args, get_origin

import yaml

from rapidun.base.errors import ConfigError
from rapidun.config import keys
from rapidun.config.run import RunConfig

# the C version where PyYAML was built with it; both write the same text
_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Base):
    """Quotes text that OmegaConf would read as a number (`1e3`), which YAML 1.1 leaves plain."""


def _text(dumper: Any, value: str) -> Any:
    try:
        float(value)
    except ValueError:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'")


_Dumper.add_representer(str, _text)


def config_yaml(cfg: RunConfig) -> str:
    """The resolved configuration as YAML, the run folder's config.yaml."""
    return as_yaml(plain(cfg))


def as_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML that OmegaConf reads back as they are."""
    return str(yaml.dump(values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))


def from_plain(values: Any) -> RunConfig:
    """Turn the JSON values of a resolved configuration (see `plain`) back into a checked RunConfig.

    Keys that are missing have their defaults.
    Raises: ConfigError with every fault: unknown keys, values of the wrong type, and what RunConfig.check finds.
    """
    faults: list[str] = []
    run = _section(RunConfig, values, "", faults)
    if not faults:
        faults = run.check()
    if faults:
        raise ConfigError(faults)
    return run


def _section(kind: Any, values: Any, prefix: str, faults: list[str]) -> Any:
    if not isinstance(values, dict):
        faults.append(f"{prefix.rstrip('.') or 'the configuration'}: need a section, got {values!r}")
        return kind()
    known = keys.hints(kind)
    faults += [keys.unknown_key(f"{prefix}{name}") for name in values if name not in known]
    made = {
        name: _value(known[name], value, f"{prefix}{name}", faults) for name, value in values.items() if name in known
    }
    return kind(**made)


def _value(kind: Any, value: Any, key: str, faults: list[str]) -> Any:
    """Convert one value; a wrong one is noted and handed back."""
    inner = keys.required(kind)
    if inner is Any or (value is None and inner is not kind):
        return value
    if is_dataclass(inner):
        return _section(inner, value, f"{key}.", faults)
    if get_origin(inner) is list and isinstance(value, list):
        return [_value(get_args(inner)[0], item, key, faults) for item in value]
    if get_origin(inner) is dict and isinstance(value, dict):
        return {name: _value(get_args(inner)[1], item, f"{key}.{name}", faults) for name, item in value.items()}
    if isinstance(inner, type) and issubclass(inner, Enum):
        if isinstance(value, str) and value in inner.__members__:
            return inner[value]
    elif inner is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(inner, type) and type(value) is inner:
        return value
    faults.append(keys.wrong_value(key, kind, value))
    return value


def plain(config: Any) -> dict[str, Any]:
    """A config section as JSON values; choices become their names."""
    # dataclasses.asdict copies every leaf; the cells of a large sweep are written out many times
    return {name: _plain(getattr(config, name)) for name in _field_names(cast(Hashable, type(config)))}


@cache
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return plain(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
