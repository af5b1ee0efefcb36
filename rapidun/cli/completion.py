"""`rapidun completion bash|zsh|fish`: a script for the shell, and the answers that the script asks for.

Hydra's own completion knows neither sub-commands nor the values of an Enum, composes on every key press, and for
`python sweep.py` runs whatever Python file stands there. Here the schema and the file names in conf/ are enough.
"""

import argparse
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidun.cli.shells import SCRIPTS
from rapidun.config import keys
from rapidun.config.parts import SCHEDULES
from rapidun.config.paths import config_groups
from rapidun.config.run import STAGES
from rapidun.config.sweep import LAUNCHERS, SWEEPERS

# flag of a run -> what follows it
RUN_FLAGS = {
    "--multirun": "", "-m": "", "--cfg": "cfg", "--info": "info", "--resolve": "", "--package": "nothing",
    "--config-dir": "folders", "--help": "", "--hydra-help": "", "--version": "",
}  # fmt: skip
HYDRA = {"hydra/launcher": tuple(LAUNCHERS), "hydra/sweeper": SWEEPERS}
# hydra.sweeper.* of hydra/sweeper=rapidun_optuna, and what each takes where that is a name
TUNING: dict[str, tuple[str, ...]] = {
    "n_trials": (), "batch_size": (), "directions": (), "sampler": ("tpe", "random", "nsgaii", "gp", "qmc"), "seed": (),
    "pruner": ("none", "median", "hyperband", "successive_halving"), "prune_metric": (),
}  # fmt: skip
# groups that fill no section of the schema; `experiment` is given as +experiment=NAME
ADDING = ("experiment", "debug")
# last part of a key that names a file or folder
PATH_KEY = re.compile(
    r"(data\.(forget|retain|keywords|dir|(train|val|test)_\w+)|mapping\.(forget|retain)(\.path)?|mapping\.scores\.\w+|"
    r"model\.path|run_dir|store_dir|tracking\.dir|unlearning\.adapter)"
)
CELL = re.compile(r"[0-9a-f]{10}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubCommand:
    """What may follow a sub-command: a verb, flags (each with what follows it), operands of one kind."""

    verbs: tuple[str, ...] = ()
    flags: tuple[tuple[str, str], ...] = ()
    operands: str = "nothing"


def _flags(follows: str, names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, follows) for name in names.split())


COMMANDS = {
    "report": SubCommand(
        flags=(("--html", "files"), ("--csv", "files"), ("--md", "files"), ("--png", "folders"), ("--cells", "")),
        operands="folders",
    ),
    "doctor": SubCommand(flags=(("--json", ""), ("--multirun", ""), ("-m", "")), operands="overrides"),
    "pack": SubCommand(
        verbs=("build", "check"),
        flags=(
            ("--responses", "files"),
            ("--seed", "nothing"),
            ("--train", "nothing"),
            ("--val", "nothing"),
            ("--test", "nothing"),
            ("--poison-fraction", "nothing"),
            ("--forget-fraction", "nothing"),
            ("--retain-ratio", "nothing"),
            ("--tokenizer", "folders"),
        ),
        operands="files",
    ),
    "model": SubCommand(verbs=("fetch",), operands="models"),
    "store": SubCommand(
        verbs=("list", "verify", "prune"), flags=(("--store", "folders"), ("--outputs", "folders"), ("--dry-run", ""))
    ),
    "sweep": SubCommand(
        verbs=("status", "logs", "collect", "cancel", "retry"), flags=(("--watch", ""),), operands="sweeps"
    ),
    "dashboard": SubCommand(
        flags=(("--publish", ""), ("--project", "nothing"), ("--entity", "nothing")), operands="sweeps"
    ),
    "wandb": SubCommand(verbs=("sync",), flags=(("--dry-run", ""),), operands="folders"),
    "completion": SubCommand(verbs=tuple(SCRIPTS)),
    "influence": SubCommand(
        verbs=("check",),
        flags=(
            *_flags("nothing", "--rows --rounds --seed"),
            *_flags("folders", "--adapter"),
            *_flags("files", "--json"),
        ),
    ),
    "index": SubCommand(
        verbs=("build", "verify", "fit", "score", "top"),
        flags=(
            *_flags("files", "--rows --queries"),
            *_flags("folders", "--out --model --adapter --precondition"),
            *_flags(
                "nothing",
                "--device --response --params --regex --lora-r --lora-targets --loss --method --k --buckets "
                "--seed --dtype --shard-rows --max-length --tokens-per-batch --threads --model-dtype "
                "--quantisation --attention --workers --score --memory-gb --per-row --tokens --by --kind "
                "--damping-factor",
            ),
            *_flags("", "--drop-cache"),
        ),
        operands="folders",
    ),
}
MODELS = ("smollm2_135m",)
SWEEPS = Path("outputs/sweeps")


def main(argv: Sequence[str]) -> int:
    """Print the script of a shell; `query -- WORD...` answers what may stand in place of the last word, a line each."""
    if argv[:1] == ["query"]:
        for candidate in complete([word for place, word in enumerate(argv[1:]) if place or word != "--"]):
            print(candidate)
        return 0
    parser = argparse.ArgumentParser(
        prog="rapidun completion",
        description="Print a script that completes rapidun's command line (and `python sweep.py`).",
        epilog='bash, in ~/.bashrc:  eval "$(rapidun completion bash)"\n'
        'zsh, in ~/.zshrc:    eval "$(rapidun completion zsh)"\n'
        "fish: rapidun completion fish > ~/.config/fish/completions/rapidun.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("shell", choices=list(SCRIPTS))
    print(SCRIPTS[parser.parse_args(argv).shell], end="")
    return 0


def complete(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last of `words`, which are those after the program's name.

    Candidates that end in = . / or , want more to follow, all others are whole words.
    """
    *before, word = words or [""]
    if before and before[0] in COMMANDS:
        found = _of_command(before, word)
    else:
        found = _of_run(before, word)
        if not before:
            found = itertools.chain(_starting(COMMANDS, word), found)
    return list(dict.fromkeys(found))


def _of_run(before: Sequence[str], word: str) -> Iterable[str]:
    kind = RUN_FLAGS.get(before[-1], "") if before else ""
    if kind:
        return KINDS[kind](before, word)
    if word.startswith("-"):
        return _starting(RUN_FLAGS, word)
    return _overrides(before, word)


def _of_command(before: Sequence[str], word: str) -> Iterable[str]:
    command = COMMANDS[before[0]]
    flags = dict(command.flags)
    if flags.get(before[-1]):
        return KINDS[flags[before[-1]]](before, word)
    if word.startswith("-"):
        return _starting([*flags, "--help"], word)
    if command.verbs and len(before) == 1:
        return _starting(command.verbs, word)
    return KINDS[command.operands](before, word)


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
        yield from (sign + key for key in _starting(ADDING, name))


def _keys(name: str, groups: dict[str, list[str]]) -> Iterator[str]:
    """Groups and the first parts of keys, or the parts below the section that is written already."""
    section = name.rpartition(".")[0]
    if name.startswith("hydra."):
        yield from _starting([f"hydra.sweeper.{key}=" for key in TUNING], name)
        return
    if not section:
        yield from _starting([f"{group}=" for group in [*groups, *HYDRA]], name)
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
    names = groups[key] if key in groups else HYDRA.get(key) or _names(key)
    taken = given.split(",")
    yield from (kept + name for name in _starting(names, last) if name not in taken)
    if PATH_KEY.fullmatch(key):
        yield from (kept + path for path in _files([], last))


def _names(key: str) -> Sequence[str]:
    """What a key takes where that is a name: members of an Enum, true and false, null."""
    if key.startswith("hydra.sweeper."):
        return TUNING.get(key.removeprefix("hydra.sweeper."), ())
    kind = keys.find(key)
    if key.endswith(".lr_scheduler_type") and kind is not None:
        return SCHEDULES
    inner = keys.required(kind)
    names = ["true", "false"] if inner is bool else keys.choices(kind)
    return names if inner is kind else [*names, "null"]


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


def _files(before: Sequence[str], word: str) -> Iterator[str]:
    return _paths(word, folders_only=False)


def _folders(before: Sequence[str], word: str) -> Iterator[str]:
    return _paths(word, folders_only=True)


def _paths(word: str, *, folders_only: bool) -> Iterator[str]:
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


def _sweeps(before: Sequence[str], word: str) -> Iterator[str]:
    """Folders of sweeps; behind `sweep logs DIR` the cells in it."""
    if before[:2] == ["sweep", "logs"] and len(before) > 2 and Path(before[2]).is_dir():
        yield from (path.name for path in sorted(Path(before[2]).iterdir()) if CELL.fullmatch(path.name))
    elif str(SWEEPS).startswith(word) and SWEEPS.is_dir():
        yield from (str(path) for path in sorted(SWEEPS.iterdir()) if path.is_dir())
    else:
        yield from (path.rstrip("/") if Path(path, "sweep.json").is_file() else path for path in _folders(before, word))


# what is completed -> how; KINDS of flags and operands above
KINDS: dict[str, Callable[[Sequence[str], str], Iterable[str]]] = {
    "cfg": lambda before, word: _starting(("job", "hydra", "all"), word),
    "info": lambda before, word: _starting(
        ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"), word
    ),
    "files": _files,
    "folders": _folders,
    "models": lambda before, word: _starting(MODELS, word) if len(before) == 2 else _folders(before, word),
    "nothing": lambda before, word: (),
    "overrides": _overrides,
    "sweeps": _sweeps,
}
