"""The configuration's keys: which exist, what each one takes, which known name is nearest to a wrong one."""

import difflib
import types
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from rapidun.config.run import RunConfig
from rapidun.config.sweep import LAUNCHERS, SWEEPERS
from rapidun.config.words import CHOICES, WORDS

# groups that add to the configuration; the others each fill a section and cannot be empty
OPTIONAL_GROUPS = ("experiment", "debug")
# who starts the cells and who sweeps
HYDRA_CHOICES: dict[str, Collection[str]] = {"hydra/launcher": LAUNCHERS, "hydra/sweeper": SWEEPERS}


@cache
def hints(section: Any) -> dict[str, Any]:
    """The type of each field of a config section; kept, since reading annotations is slow."""
    return get_type_hints(section)


def find(key: str, root: Any = RunConfig) -> Any:
    """Return the type that `key` (dots between its parts) takes, or None where there is no such key."""
    kind = root
    for part in key.split("."):
        kind = required(kind)
        if _is_section(kind):
            kind = hints(kind).get(part)
        elif get_origin(kind) is dict and part:
            kind = get_args(kind)[1]
        else:
            return None
        if kind is None:
            return None
    return kind


def dict_above(key: str) -> str | None:
    """Return the part of `key` that names a field with free entries (data.families), or None."""
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        if get_origin(find(".".join(parts[:length]))) is dict:
            return ".".join(parts[:length])
    return None


def all_keys(root: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every key of the tree below `root`, sections included."""
    for name, kind in hints(root).items():
        yield prefix + name
        if is_dataclass(required(kind)):
            yield from all_keys(required(kind), f"{prefix}{name}.")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None where none is near."""
    names = list(known)
    # other projects write NPO
    plain = CHOICES.get(name.casefold(), name.casefold())
    if name not in names and plain in names:
        return plain
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    # a long name cut short is far by letters but plain to see
    longer = [other for other in names if len(name) > 2 and other.startswith(name)]
    return next(iter([*close, *longer]), None)


def unknown_key(key: str) -> str:
    """Say that there is no such key, and which one may be meant."""
    known = list(all_keys())
    section, _, last = key.rpartition(".")
    if last in WORDS and (foreign := _foreign(last, section)):
        return f"{key}: no such key; {foreign}"
    # the same word elsewhere (tau_f -> mapping.tau_f), then a slip in the word, then a slip anywhere
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    if elsewhere:
        return f"{key}: no such key; did you mean {' or '.join(elsewhere[:3])}?"
    while section and find(section) is None:
        section = section.rpartition(".")[0]
    here = children(section)
    slip = nearest(key[len(section) :].lstrip(".").partition(".")[0], here)
    if slip is not None:
        return f"{key}: no such key; did you mean {section + '.' if section else ''}{slip}?"
    close = nearest(key, known)
    if close is not None and not key.startswith(f"{close}."):
        return f"{key}: no such key; did you mean {close}?"
    return f"{key}: no such key; {section or 'the configuration'} has {', '.join(here)}"


def _foreign(word: str, section: str) -> str:
    """What another project's word is here; of several keys those in the section that was typed, where there are any."""
    entry = WORDS[word]
    # methods come and go, and their keys with them
    there = [name for name in entry.keys if find(name) is not None]
    if not there and not entry.note:
        return ""
    names = [name for name in there if section and name.startswith(f"{section}.")] or there
    here = f"in rapidun it is {_either(names)}" if names else "rapidun has none"
    return f"{here} ({entry.whose} name{'; ' + entry.note if entry.note else ''})"


def _either(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def children(section: str) -> list[str]:
    """The names directly below `section` ('' = the whole configuration)."""
    kind = required(find(section)) if section else RunConfig
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def describe(kind: Any) -> str:
    """Say in words what a key of this type takes."""
    inner = required(kind)
    if isinstance(inner, type) and issubclass(inner, Enum):
        words = "one of " + ", ".join(member.name for member in inner)
    elif is_dataclass(inner):
        words = "a section with the keys " + ", ".join(field.name for field in fields(inner))
    elif get_origin(inner) is list:
        nested = get_origin(get_args(inner)[0]) is list
        words = "a list of lists such as [[a,b],[c,d]]" if nested else "a list such as [a,b]"
    elif get_origin(inner) is dict:
        words = "entries such as {name: ...}"
    else:
        words = {
            Any: "a name, or a list such as [a,b]",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "text",
        }.get(inner, str(inner))
    return words if inner is kind else f"{words}, or null"


def wrong_value(key: str, kind: Any, value: Any) -> str:
    """Say what a key of this type takes, and what came."""
    close = nearest(str(value), choices(kind))
    guess = f" Did you mean {close}?" if close else ""
    return f"{key}: need {describe(kind)}, got {value!r}.{guess}"


def choices(kind: Any) -> list[str]:
    """The members where `kind` is an Enum, else nothing."""
    inner = required(kind)
    return [member.name for member in inner] if isinstance(inner, type) and issubclass(inner, Enum) else []


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind)


def required(kind: Any) -> Any:
    """`X | None` -> `X`."""
    if get_origin(kind) in (types.UnionType, Union):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind
