"""Checks overrides against the schema before Hydra composes, so that all their faults are reported together."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString, RangeSweep, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rapidun.base.errors import ConfigError
from rapidun.config import experiments, hydra_settings, keys
from rapidun.config.run import RunConfig

TUNER = "hydra/sweeper=rapidun_optuna"
# of one axis; more is a slip of the pen
MAX_VALUES = 100_000
_WEIGHTS_FILE = re.compile(r"(\+{0,2}mapping\.(?:forget|retain))=(?!\s*\{)")


# the grammar's parser calls itself for each bracket
MAX_LENGTH = 1_000_000
MAX_NESTED = 50


def _depth(text: str) -> int:
    depth = most = 0
    for letter in text:
        depth += (letter in "[{(") - (letter in ")}]")
        most = max(most, depth)
    return most


@dataclass(frozen=True, slots=True)
class Checked:
    """`overrides` are the valid ones, spelt as Hydra takes them; `certain` is false where a group had to be dropped."""

    overrides: list[str]
    faults: list[str]
    certain: bool


@lru_cache(maxsize=4096)
def parse(text: str) -> Override:
    """Read one override; the result is shared, so nobody may change it.

    Raises: HydraException.
    """
    if len(text) > MAX_LENGTH or _depth(text) > MAX_NESTED:
        raise HydraException(f"need at most {MAX_LENGTH:,} letters, nested at most {MAX_NESTED} brackets deep")
    return OverridesParser.create().parse_override(text)


def check_overrides(
    overrides: Sequence[str], *, groups: Mapping[str, Sequence[str]], multirun: bool, intervals: bool | None = None
) -> Checked:
    """Check every override and spell the valid ones as Hydra takes them.

    A leading + or ++ is dropped where the key exists (+experiment=x), experiment=null becomes ~experiment,
    mapping.forget=FILE becomes mapping.forget.path=FILE, an expression in sweep.where or sweep.budget is quoted,
    sweep.zip=[a,b] becomes [[a,b]], an unknown group choice is replaced by the nearest known one, so that the composed
    configuration can still be checked. Overrides of Hydra itself pass as they are, but for the names of launcher and
    sweeper.

    Args: groups: the choices of each config group. multirun: whether several values (a sweep) are allowed.
        intervals: whether interval(a,b) is allowed; None = if the overrides choose the sweeper that takes it.
    """
    if intervals is None:
        intervals = multirun and any(text.lstrip("+") == TUNER for text in overrides)
    valid: list[str] = []
    faults: list[str] = []
    certain = True
    for text in overrides:
        text = _mend(text)
        try:
            override = parse(text)
        except HydraException as error:
            faults.append(_unreadable(text, error))
            continue
        if override.is_hydra_override():
            found = _check_hydra(override)
            faults += found
            valid += [] if found else [text]
            continue
        found, mended = _check(override, groups=groups, multirun=multirun, intervals=intervals)
        faults += found
        if mended is not None:
            valid.append(mended)
        certain = certain and not (mended is None and override.key_or_group in groups)
    return Checked(valid, faults, certain)


def _mend(text: str) -> str:
    """Respell what users type plainly but Hydra's grammar takes only in quotes or brackets."""
    text = _WEIGHTS_FILE.sub(r"\1.path=", text, count=1)
    key, equals, value = text.partition("=")
    if not equals or key.lstrip("+") not in ("sweep.where", "sweep.budget", "sweep.zip"):
        return text
    parsed: Any = None
    try:
        override = parse(text)
        plain = not override.is_sweep_override()
        parsed = override.value()
    except HydraException:
        plain = False
    if not key.endswith("zip"):
        plain = plain and not isinstance(parsed, list | dict)
        return text if plain else f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    flat = plain and isinstance(parsed, list) and parsed and not any(isinstance(item, list) for item in parsed)
    return f"{key}=[{value}]" if flat else text


def _check_hydra(override: Override) -> list[str]:
    """Check an override of Hydra's own settings."""
    key = override.key_or_group
    if override.is_sweep_override():
        return [f"{key}: Hydra's own settings cannot be swept. Pass one value"]
    if fault := hydra_settings.key_fault(key, override.value()):
        return [fault]
    known = keys.HYDRA_CHOICES.get(key)
    if known is None or override.is_delete() or override.value() in known:
        return []
    close = keys.nearest(str(override.value()), known)
    guess = f"did you mean {key}={close}?" if close else f"pass {key}=NAME"
    shown = "null" if override.value() is None else str(override.value())
    return [f"{key}: no such choice {shown!r}; known: {', '.join(known)}; {guess}"]


def _check(
    override: Override, *, groups: Mapping[str, Sequence[str]], multirun: bool, intervals: bool
) -> tuple[list[str], str | None]:
    """Return the faults of one override, and the override as Hydra takes it (None = leave it out)."""
    key = override.key_or_group
    text = (override.input_line or "").lstrip("+")
    if override.package is not None:
        return [f"{key}@{override.package}: packages (@) are not used here. Pass {key}=..."], None
    if override.is_delete():
        above = keys.dict_above(key)
        if above is not None and above != key:
            return [], text
        if key in keys.OPTIONAL_GROUPS:
            return [], f"~{key}"
        if keys.find(key) is None and key not in groups:
            return [keys.unknown_key(key)], None
        return [f"~{key}: cannot be removed, every run needs it. Pass {key}=..."], None
    if key not in groups and keys.find(key) is None:
        return [keys.unknown_key(key)], None
    if override.is_sweep_override() and not multirun:
        return [f"{key}: several values need -m (a sweep); a list is written {key}=[...]; got {text}"], None
    if override.is_sweep_override() and key.startswith("sweep."):
        return [f"{key}: cannot be swept, a sweep has one. Pass {key}=VALUE; got {text}"], None
    if override.is_interval_sweep() and not intervals:
        return [
            f"{key}: need values to try, such as {key}=1,2 or range(1,3), got {text.partition('=')[2]}. "
            f"Intervals need {TUNER}"
        ], None
    if override.value_type is ValueType.RANGE_SWEEP and (fault := _range_fault(override)) is not None:
        return [fault], None
    if key in groups:
        return _check_choice(override, groups[key], text)
    faults = [fault for value in values(override) if (fault := _value_fault(key, value))]
    if faults:
        return faults, None
    above = keys.dict_above(key)
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


def _range_fault(override: Override) -> str | None:
    """Say what is wrong with range(start,stop,step), before anybody counts it out."""
    key, sweep = override.key_or_group, override.value()
    if not isinstance(sweep, RangeSweep) or sweep.start is None or sweep.stop is None:
        return f"{key}: need range(stop) or range(start,stop,step). Pass {key}=range(1,3)"
    given = f"range({sweep.start},{sweep.stop},{sweep.step})"
    bounds = (sweep.start, sweep.stop, sweep.step)
    if sweep.step == 0 or not all(math.isfinite(bound) for bound in bounds):
        return f"{key}: need a finite range with a step other than 0, got {given}. Pass {key}=range(1,3)"
    length = (sweep.stop - sweep.start) / sweep.step
    if not 0 < length <= MAX_VALUES:
        return f"{key}: need 1 to {MAX_VALUES} values, got {given} with {max(0, math.ceil(length))}. Change the range"
    return None


def _check_choice(override: Override, known: Sequence[str], text: str) -> tuple[list[str], str | None]:
    """Check the choice, or each swept choice, of a config group."""
    group = override.key_or_group
    if isinstance(override.value(), Glob):
        return [], text
    faults: list[str] = []
    names: list[str] = []
    mendable = True
    for value in values(override):
        if value is None and group in keys.OPTIONAL_GROUPS:
            names.append("null")
            continue
        for name in value if isinstance(value, list) else [value]:
            if group == experiments.GROUP and experiments.is_path(name):
                fault = experiments.path_fault(name)
                faults += [fault] if fault else []
                mendable = mendable and not fault
                names.append(name)
                continue
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
        # Hydra's word for a group without a file
        return [], f"~{group}" if names == ["null"] else text
    return faults, f"{group}={','.join(names)}" if mendable else None


def values(override: Override) -> list[Any]:
    """The value, every value of a sweep, or both ends of an interval."""
    sweep: Any = override.value()
    if isinstance(sweep, Glob):
        return []
    if override.is_interval_sweep():
        return [sweep.start, sweep.end]
    if override.is_sweep_override():
        return [Override._convert_value(value) for value in override.sweep_iterator()]
    return [sweep]


def _value_fault(key: str, value: Any) -> str:
    try:
        convert(key, value)
    except ConfigError as error:
        return str(error)
    return ""


def is_special(value: Any) -> bool:
    """Whether OmegaConf sees more in a value than the value: ${...} refers to other keys, ??? is missing."""
    if isinstance(value, str):
        return "${" in value or value == "???"
    if isinstance(value, dict):
        return any(is_special(item) for pair in value.items() for item in pair)
    return isinstance(value, list) and any(is_special(item) for item in value)


def is_leaf(key: str, value: Any) -> bool:
    """Whether the value stands for itself, at a key of its own: no section, no free entry, no reference."""
    kind = keys.required(keys.find(key))
    if kind is None or is_dataclass(kind) or keys.dict_above(key) is not None or is_special(value):
        return False
    return get_origin(kind) is not list or isinstance(value, list)


def convert(key: str, value: Any) -> Any:
    """What `value` becomes at `key` (text to an Enum member, 1 to 1.0), as OmegaConf converts it.

    What is no leaf is tried and handed back: what becomes of it, Hydra knows.

    Raises: ConfigError if the key does not take the value.
    """
    target = keys.dict_above(key) or key
    tried = value
    for part in reversed(key[len(target) :].lstrip(".").split(".")):
        tried = {part: tried} if part else tried
    leaf = is_leaf(key, value)
    schema = _schema() if leaf else OmegaConf.structured(RunConfig)
    try:
        OmegaConf.update(schema, target, tried, merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_refusal(key, value, at=str(error.full_key or key))) from None
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(_refusal(key, value, at=key)) from None
    if not leaf:
        return value
    found = OmegaConf.select(schema, key)
    return OmegaConf.to_object(found) if OmegaConf.is_config(found) else found


@lru_cache(maxsize=1)
def _schema() -> DictConfig:
    """An empty configuration to try leaves on; making one takes longer than trying hundreds of values."""
    return OmegaConf.structured(RunConfig)


def _refusal(key: str, value: Any, *, at: str) -> str:
    """Say what the key takes and what came, or that there is no such key (`at`) inside the value."""
    inside = at != key and at.startswith((key, key.partition(".")[0] + "."))
    if inside and keys.find(at) is None:
        return keys.unknown_key(at)
    return f"{keys.wrong_value(key, keys.find(key), value)} Pass {key}=..."


def _unreadable(text: str, error: Exception) -> str:
    """Say that an override is not of the form key=value."""
    if "=" not in text and not text.startswith("~"):
        return f"{text!r}: need key=value or a sub-command (rapidun --help lists both)"
    if len(text) > MAX_LENGTH or _depth(text) > MAX_NESTED:
        return f"{text[:60]!r}...: {error}"
    lines = [line for line in str(error).split("\n") if line.strip() and "hydra.cc" not in line]
    reason = lines[1].strip() if len(lines) > 1 else "not understood"
    return f"{text!r}: cannot be read ({reason}). Put values with blanks, commas or brackets in quotes: 'key=\"a, b\"'"
