"""Checks overrides against the schema before Hydra composes, so that all their faults are reported together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rapidun import keys
from rapidun.config import RunConfig

# groups that add to the configuration; the others each fill a section and cannot be empty
OPTIONAL_GROUPS = ("experiment", "debug")
_WEIGHTS_FILE = re.compile(r"(\+{0,2}mapping\.(?:forget|retain))=(?!\s*\{)")


@dataclass(frozen=True, slots=True)
class Checked:
    """`overrides` are the valid ones, spelt as Hydra takes them; `certain` is false where a group had to be dropped."""

    overrides: list[str]
    faults: list[str]
    certain: bool


def check_overrides(overrides: Sequence[str], *, groups: Mapping[str, Sequence[str]], multirun: bool) -> Checked:
    """Check every override and spell the valid ones as Hydra takes them.

    A leading + or ++ is dropped where the key exists (+experiment=x), mapping.forget=FILE becomes
    mapping.forget.path=FILE, an unknown group choice is replaced by the nearest known one, so that the
    composed configuration can still be checked. Overrides of Hydra itself pass as they are.

    Args: groups: the choices of each config group. multirun: whether several values (a sweep) are allowed.
    """
    valid: list[str] = []
    faults: list[str] = []
    certain = True
    for text in overrides:
        text = _WEIGHTS_FILE.sub(r"\1.path=", text, count=1)
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            faults.append(_unreadable(text, error))
            continue
        if override.is_hydra_override():
            valid.append(text)
            continue
        found, mended = _check(override, groups=groups, multirun=multirun)
        faults += found
        if mended is not None:
            valid.append(mended)
        certain = certain and not (mended is None and override.key_or_group in groups)
    return Checked(valid, faults, certain)


def _check(override: Override, *, groups: Mapping[str, Sequence[str]], multirun: bool) -> tuple[list[str], str | None]:
    """Return the faults of one override, and the override as Hydra takes it (None = leave it out)."""
    key = override.key_or_group
    text = (override.input_line or "").lstrip("+")
    if override.package is not None:
        return [f"{key}@{override.package}: packages (@) are not used here. Pass {key}=..."], None
    if override.is_delete():
        above = keys.dict_above(key)
        if above is not None and above != key:
            return [], text
        if keys.find(key) is None and key not in groups:
            return [keys.unknown_key(key)], None
        return [f"~{key}: cannot be removed, every run needs it. Pass {key}=..."], None
    if key not in groups and keys.find(key) is None:
        return [keys.unknown_key(key)], None
    if override.is_sweep_override() and not multirun:
        return [f"{key}: several values need -m (a sweep); a list is written {key}=[...]; got {text}"], None
    if override.is_interval_sweep():
        return [f"{key}: need values to try, such as {key}=1,2 or range(1,3), got {text.partition('=')[2]}"], None
    if key in groups:
        return _check_choice(override, groups[key], text)
    above = keys.dict_above(key)
    faults = [fault for value in _values(override) for fault in _check_value(key, value, above)]
    if faults:
        return faults, None
    if above is None:
        return [], text
    # a new entry of a field with free entries cannot be reached by its own key: hand over the whole entry
    inner = key[len(above) :].lstrip(".")
    if inner and override.is_sweep_override():
        return [f"{key}: cannot be swept by itself. Sweep {above}={{...}},{{...}}"], None
    value = text.partition("=")[2]
    for part in reversed(inner.split(".") if inner else []):
        value = f"{{{part}: {value}}}"
    return [], f"++{above}={value}"


def _check_choice(override: Override, known: Sequence[str], text: str) -> tuple[list[str], str | None]:
    """Check the choice, or each swept choice, of a config group."""
    group = override.key_or_group
    if isinstance(override.value(), Glob):
        return [], text
    faults: list[str] = []
    names: list[str] = []
    mendable = True
    for value in _values(override):
        if value is None and group in OPTIONAL_GROUPS:
            names.append("null")
            continue
        for name in value if isinstance(value, list) else [value]:
            if str(name) in known:
                names.append(str(name))
                continue
            close = keys.nearest(str(name), known)
            mendable = mendable and close is not None
            names.append(close or "")
            guess = f"did you mean {group}={close}?" if close else f"pass {group}=NAME"
            if isinstance(name, dict):
                guess = f"single keys are set by {group}.KEY=VALUE"
            shown = "null" if name is None else str(name)
            faults.append(f"{group}: no such choice {shown!r}; known: {', '.join(known)}; {guess}")
    if not faults:
        return [], text
    return faults, f"{group}={','.join(names)}" if mendable else None


def _values(override: Override) -> list[Any]:
    """The value, or every value of a sweep."""
    if isinstance(override.value(), Glob):
        return []
    if override.is_sweep_override():
        return [Override._convert_value(value) for value in override.sweep_iterator()]
    return [override.value()]


def _check_value(key: str, value: Any, above: str | None) -> list[str]:
    """Try the value on an empty configuration."""
    target = key
    tried = value
    if above is not None:
        target = above
        for part in reversed(key[len(above) :].lstrip(".").split(".")):
            tried = {part: tried} if part else tried
    schema = OmegaConf.structured(RunConfig)
    try:
        OmegaConf.update(schema, target, tried, merge=True)
    except OmegaConfBaseException as error:
        return [value_fault(error, key, value)]
    except (ValueError, TypeError, AttributeError):
        return [_wrong_value(key, keys.find(key), value)]
    return []


def value_fault(error: OmegaConfBaseException, key: str, value: Any) -> str:
    """Say what OmegaConf objects to: a key that does not exist inside the value, or a value of the wrong type."""
    full = error.full_key or key
    full = full if full.startswith(key) or key.startswith(full.partition(".")[0] + ".") else key
    if full != key and keys.find(full) is None:
        return keys.unknown_key(full)
    return _wrong_value(key, keys.find(key), value)


def _wrong_value(key: str, kind: Any, value: Any) -> str:
    """Say what the key takes and what came."""
    close = keys.nearest(str(value), keys.choices(kind))
    guess = f" Did you mean {close}?" if close else ""
    return f"{key}: need {keys.describe(kind)}, got {value!r}.{guess} Pass {key}=..."


def _unreadable(text: str, error: Exception) -> str:
    """Say that an override is not of the form key=value."""
    if "=" not in text and not text.startswith("~"):
        return f"{text!r}: need key=value or a sub-command (rapidun --help lists both)"
    lines = [line for line in str(error).splitlines() if line.strip() and "hydra.cc" not in line]
    reason = lines[1].strip() if len(lines) > 1 else "not understood"
    return f"{text!r}: cannot be read ({reason}). Put values with blanks, commas or brackets in quotes: 'key=\"a, b\"'"
