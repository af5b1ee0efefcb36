"""`rapidun completion bash|zsh|fish`: a script for the shell, and the answers that the script asks for.

Hydra's own completion knows neither sub-commands nor the values of an Enum, composes on every key press, and for
`python sweep.py` runs whatever Python file stands there. Here the schema and the file names in conf/ are enough.
"""

import argparse
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rapidun.cli.commands import CELL, FOLDER, MODEL, OVERRIDE, PACKAGED_MODEL, SUBCOMMANDS, SWEEP, Parser, run_parser
from rapidun.cli.shells import SCRIPTS
from rapidun.config import keys
from rapidun.config.parts import SCHEDULES
from rapidun.config.paths import config_groups
from rapidun.config.run import STAGES
from rapidun.models.gguf import PACKAGED
from rapidun.sweep.folder import SWEEPS

# last part of a key that names a file or folder
PATH_KEY = re.compile(
    r"(data\.(forget|retain|keywords|dir|(train|val|test)_\w+)|mapping\.(forget|retain)(\.path)?|mapping\.scores\.\w+|"
    r"model\.path|experiment|run_dir|store_dir|tracking\.dir|unlearning\.adapter)"
)
CELL_HASH = re.compile(r"[0-9a-f]{10}")
# the words before the one to complete, and that one -> what may stand in its place
Offer = Callable[[Sequence[str], str], Iterable[str]]


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun completion",
        description="Print a script that completes rapidun's command line (and `python sweep.py`).",
        epilog='bash, in ~/.bashrc:  eval "$(rapidun completion bash)"\n'
        'zsh, in ~/.zshrc:    eval "$(rapidun completion zsh)"\n'
        "fish: rapidun completion fish > ~/.config/fish/completions/rapidun.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("shell", choices=list(SCRIPTS))
    return made


def main(argv: Sequence[str]) -> int:
    """Print the script of a shell; `query -- WORD...` answers what may stand in place of the last word, a line each."""
    if argv[:1] == ["query"]:
        for candidate in complete([word for place, word in enumerate(argv[1:]) if place or word != "--"]):
            print(candidate)
        return 0
    print(SCRIPTS[parser().parse_args(argv).shell], end="")
    return 0


def complete(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last of `words`, which are those after the program's name.

    Candidates that end in = . / or , want more to follow, all others are whole words.
    """
    *before, word = words or [""]
    if before and before[0] in SUBCOMMANDS:
        found = _arguments(SUBCOMMANDS[before[0]].load().parser(), before[1:], word)
    else:
        found = _arguments(run_parser(), before, word, otherwise=_overrides)
        if not before:
            found = itertools.chain(_starting(SUBCOMMANDS, word), found)
    return list(dict.fromkeys(found))


def _arguments(
    parser: argparse.ArgumentParser, before: Sequence[str], word: str, *, otherwise: Offer | None = None
) -> Iterable[str]:
    """Walk down to the verb that was typed, and on to the argument that `word` is for.

    Args: otherwise: what is offered where the parser knows no operands.
    """
    flags = {flag: action for action in parser._actions for flag in action.option_strings if flag != "-h"}
    operands = [action for action in parser._actions if not action.option_strings]
    given: list[str] = []
    flag: argparse.Action | None = None
    for place, text in enumerate(before):
        if flag is not None:
            flag = None
        elif text.startswith("-"):
            flag = flags.get(text)
            flag = None if flag is None or flag.nargs == 0 else flag
        elif operands and isinstance(operands[0], argparse._SubParsersAction):
            verb = operands[0].choices.get(text)
            return _arguments(verb, before[place + 1 :], word) if verb is not None else ()
        else:
            given.append(text)
    if flag is not None:
        return _values_of(flag, given, word)
    if word.startswith("-"):
        return _starting(sorted(flags, key="--help".__eq__), word)
    if not operands:
        return otherwise(before, word) if otherwise is not None else ()
    action = operands[min(len(given), len(operands) - 1)]
    return _values_of(action, given, word) if len(given) < len(operands) or action.nargs in ("*", "+") else ()


def _values_of(action: argparse.Action, given: Sequence[str], word: str) -> Iterable[str]:
    """What an argument takes: its choices, or what its type stands for. `given`: the operands before it."""
    if action.choices is not None:
        return _starting(action.choices, word)
    return KINDS[action.type](given, word) if action.type in KINDS else ()


def _overrides(before: Sequence[str], word: str) -> Iterator[str]:
    """`key=value` as far as it is written: the next part of the key, or the value."""
    name = word.lstrip("+~")
    sign = word[: len(word) - len(name)]
    groups = config_groups(_extra_dir(before))
    key, equals, value = name.partition("=")
    if equals:
        yield from (f"{sign}{key}={rest}" for rest in _values(key, value, groups))
    elif not sign.startswith("~"):
        yield from (sign + key for key in _keys(name, groups))
    else:
        yield from (sign + key for key in _starting(keys.OPTIONAL_GROUPS, name))


def _keys(name: str, groups: dict[str, list[str]]) -> Iterator[str]:
    """Groups and the first parts of keys, or the parts below the section that is written already."""
    section = name.rpartition(".")[0]
    if name.startswith("hydra."):
        yield from _starting([f"hydra.sweeper.{key}=" for key in _tuning()], name)
        return
    if not section:
        yield from _starting([f"{group}=" for group in [*groups, *keys.HYDRA_CHOICES]], name)
    for child in keys.children(section):
        key = f"{section}.{child}" if section else child
        below = keys.children(key)
        yield from _starting([f"{key}." if below else f"{key}="], name)


def _values(key: str, value: str, groups: dict[str, list[str]]) -> Iterator[str]:
    """The values of a key that begin with `value`; of a sweep (a,b) the last one."""
    if key == "stages":
        yield from _starting(_stage_lists(), value)
        return
    given, comma, last = value.rpartition(",")
    kept = given + comma
    names = groups[key] if key in groups else keys.HYDRA_CHOICES.get(key) or _names(key)
    taken = given.split(",")
    yield from (kept + name for name in _starting(names, last) if name not in taken)
    if PATH_KEY.fullmatch(key):
        yield from (kept + path for path in _paths([], last, folders_only=False))


def _names(key: str) -> Sequence[str]:
    """What a key takes where that is a name: members of an Enum, true and false, null."""
    if key.startswith("hydra.sweeper."):
        return _tuning().get(key.removeprefix("hydra.sweeper."), ())
    kind = keys.find(key)
    if key.endswith(".lr_scheduler_type") and kind is not None:
        return SCHEDULES
    inner = keys.required(kind)
    names = ["true", "false"] if inner is bool else keys.choices(kind)
    return names if inner is kind else [*names, "null"]


def _tuning() -> dict[str, Sequence[str]]:
    """hydra.sweeper.* of hydra/sweeper=rapidun_optuna, and what each takes where that is a name."""
    # Hydra, which all other answers do without
    from rapidun.sweep.tuning.search import PRUNERS, SAMPLERS, Tuning

    named = {"sampler": tuple(SAMPLERS), "pruner": tuple(PRUNERS)}
    return {field.name: named.get(field.name, ()) for field in fields(Tuning)}


def _stage_lists() -> Iterator[str]:
    """Every run of consecutive stages, the longer ones first."""
    for length in range(len(STAGES), 0, -1):
        yield from (f"[{','.join(STAGES[start : start + length])}]" for start in range(len(STAGES) - length + 1))


def _extra_dir(before: Sequence[str]) -> Path | None:
    for flag, folder in itertools.pairwise(before):
        if flag in ("--config-dir", "-cd") and Path(folder).is_dir():
            return Path(folder)
    return None


def _starting(names: Iterable[str], start: str) -> Iterator[str]:
    return (name for name in names if name.startswith(start))


def _paths(before: Sequence[str], word: str, *, folders_only: bool) -> Iterator[str]:
    """Paths that begin with `word`, folders with a slash behind; ~ is kept as written."""
    folder, slash, start = word.rpartition("/")
    try:
        with os.scandir(Path(folder + slash or ".").expanduser()) as entries:
            inside = sorted((entry.name, entry.is_dir()) for entry in entries)
    except (OSError, RuntimeError):  # no such folder, or no such user behind ~
        return
    for name, is_folder in inside:
        if name.startswith(start) and (start or not name.startswith(".")) and (is_folder or not folders_only):
            yield f"{folder}{slash}{name}{'/' if is_folder else ''}"


def _folders(before: Sequence[str], word: str) -> Iterator[str]:
    return _paths(before, word, folders_only=True)


def _sweeps(before: Sequence[str], word: str) -> Iterator[str]:
    if str(SWEEPS).startswith(word) and SWEEPS.is_dir():
        yield from (str(path) for path in sorted(SWEEPS.iterdir()) if path.is_dir())
    else:
        yield from (path.rstrip("/") if Path(path, "sweep.json").is_file() else path for path in _folders(before, word))


def _cells(before: Sequence[str], word: str) -> Iterator[str]:
    """Behind `sweep logs DIR` the cells in it."""
    if before[0] == "logs" and Path(before[1]).is_dir():
        yield from (path.name for path in sorted(Path(before[1]).iterdir()) if CELL_HASH.fullmatch(path.name))


# type of an argument -> what is offered
KINDS: dict[Any, Offer] = {
    Path: partial(_paths, folders_only=False),
    FOLDER: _folders,
    MODEL: _folders,
    PACKAGED_MODEL: lambda before, word: _starting(PACKAGED, word),
    SWEEP: _sweeps,
    CELL: _cells,
    OVERRIDE: _overrides,
}
