"""Types of flags, and flags that come from a class of settings: type, choices and default as the field has them."""

import argparse
import dataclasses
import math
from enum import Enum
from typing import Any

from rapidun.config import keys


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"need a number >= 1, got {text}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"need a number > 0, got {text}")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"need a number >= 0, got {text}")
    return value


def add_setting(verb: argparse.ArgumentParser, settings: Any, name: str, *, show_default: bool = False) -> None:
    """The flag of a setting. Its default is None where the setting would be ignored unless another is given.

    Args: settings: a dataclass whose fields' metadata hold help, metavar, choices, `any` (an int below 0 will do),
        `least` (0: one below 1 will do) and `only` (which other setting reads it). show_default: say the default in
        the help.
    """
    setting = next(one for one in dataclasses.fields(settings) if one.name == name)
    kind = keys.hints(settings)[name]
    shown = dict(setting.metadata)
    default = setting.default.name if isinstance(setting.default, Enum) else setting.default
    text = shown.get("help")
    if show_default or ("only" in shown and default is not None):
        text = f"{text or ''} (default {default})".strip()
    more: dict[str, Any] = {"help": text, "metavar": shown.get("metavar")}
    choices = [member.name for member in shown.get("choices", ())] or keys.choices(kind)
    if choices:
        more["choices"] = choices
    elif kind is int:
        more["type"] = int if "any" in shown else count if shown.get("least") == 0 else positive
    verb.add_argument(f"--{name.replace('_', '-')}", default=None if "only" in shown else default, **more)
