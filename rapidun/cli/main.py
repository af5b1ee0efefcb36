"""The command line: sub-commands, help, and the checks that come before anything loads.

Exit status: 0 all well; 1 a stage or some sweep cells failed; 2 the configuration or an input is wrong.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rapidun.base.errors import ConfigError, RapidunError

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# these belong to Hydra alone: they neither run anything nor take overrides of ours
HYDRA_ONLY = ("--hydra-help", "--shell-completion", "-sc")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in SUBCOMMANDS:
            # on import it misses a kernel that quantised models on the CPU could be faster with; a run says no more
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
            return SUBCOMMANDS[argv[0]](argv[1:])
        return _compose_and_run(argv)
    except RapidunError as error:
        from rapidun.cli.run import complain

        return complain(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader (head, less) has seen enough; the interpreter must not fail on flushing either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _compose_and_run(argv: list[str]) -> int:
    if any(flag in argv for flag in ("--help", "-h")):
        from rapidun.cli.help import help_text

        print(help_text(), end="")
        return 0
    if any(flag in argv for flag in HYDRA_ONLY):
        return _hydra(argv, _nothing)
    options, overrides = _parse(argv)
    if options.version:
        from rapidun.cli.help import version

        print(f"rapidun {version()}")
        return 0

    from rapidun.config.compose import compose_config, spell

    extra = Path(options.config_dir) if options.config_dir else None
    if options.multirun:
        return _sweep(overrides, extra)
    alone = [text for text in overrides if text.lstrip("+").startswith(("sweep.", "hydra/launcher", "hydra/sweeper"))]
    cfg = compose_config(overrides, extra_dir=extra)
    if alone and not (options.cfg or options.info):
        raise ConfigError(f"{alone[0]}: sweeps need -m; this is one run. Pass -m, or leave it out")
    if options.cfg or options.info:
        shown = [f"--cfg={options.cfg}"] if options.cfg else [f"--info={options.info}"]
        shown += ["--resolve"] if options.resolve else []
        shown += [f"--package={options.package}"] if options.package else []
        return _hydra([*shown, *_config_dir(extra), *spell(overrides, extra_dir=extra)], _nothing)
    from rapidun.cli.run import run_once

    return run_once(cfg, overrides)


def _sweep(overrides: list[str], extra: Path | None) -> int:
    """Check every cell, then let Hydra call the sweeper."""
    from rapidun.config.cells import compose_sweep
    from rapidun.config.compose import spell
    from rapidun.config.overrides import TUNER
    from rapidun.sweep.entry import begin, handover

    begin(overrides, extra_dir=extra)
    tuned = any(text.lstrip("+") == TUNER for text in overrides)
    if not tuned:
        handover.composed = compose_sweep(overrides, extra_dir=extra, on_progress=_progress("checking"))
    status = _hydra(["--multirun", *_config_dir(extra), *spell(overrides, extra_dir=extra)], _nothing)
    if handover.error is not None:
        raise handover.error
    if handover.status is None:
        # Hydra itself refused something and has said so
        return 2 if status else 0
    return handover.status


def _progress(word: str) -> Callable[[int, int], None]:
    """A line now and then, where cells take more than a moment."""
    said = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > 1.0:
            said = time.monotonic()
            print(f"{word}: {done} of {total} cells", flush=True)

    return on_progress


class _Parser(argparse.ArgumentParser):
    """Faults of the command line come out like those of the configuration."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}. See rapidun --help")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into flags and overrides, in any order."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd")
    options, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-")]
    if unknown:
        parser.error(f"no such option: {' '.join(unknown)}")
    if options.multirun and (options.cfg or options.info):
        parser.error("--cfg and --info show one run; leave out -m")
    if options.config_dir and not Path(options.config_dir).is_dir():
        parser.error(f"--config-dir: need a folder, got {options.config_dir}")
    return options, rest


def _config_dir(extra: Path | None) -> list[str]:
    return [f"--config-dir={extra.resolve()}"] if extra else []


def _hydra(argv: list[str], task: Callable[[Any], Any]) -> int:
    """Hand over to Hydra, which reads sys.argv."""
    import hydra

    from rapidun.config.compose import CONFIG_NAME, VERSION_BASE, register_schema
    from rapidun.config.paths import config_dir

    register_schema()
    held = sys.argv
    # --info sends the root logger to stdout for good
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = [held[0], *argv]
    try:
        hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=CONFIG_NAME)(task)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.argv = held
        root.handlers[:] = handlers
        root.setLevel(level)
    return 0


def _nothing(cfg: Any) -> None:
    """The task of commands that only show something."""


def _report(argv: list[str]) -> int:
    from rapidun.cli.report import main as report

    return report(argv)


def _doctor(argv: list[str]) -> int:
    from rapidun.cli.doctor.command import main as doctor

    return doctor(argv)


def _pack(argv: list[str]) -> int:
    from rapidun.cli.pack import main as pack

    return pack(argv) or 0


def _model(argv: list[str]) -> int:
    if argv[:1] != ["fetch"]:
        print("usage: rapidun model fetch NAME [DIR]")
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    from rapidun.cli.model import main_fetch

    return main_fetch(argv[1:])


def _store(argv: list[str]) -> int:
    from rapidun.cli.store import main as store

    return store(argv)


def _sweep_command(argv: list[str]) -> int:
    from rapidun.cli.sweep import main as sweep

    return sweep(argv)


def _dashboard(argv: list[str]) -> int:
    from rapidun.cli.dashboard import main as dashboard

    return dashboard(argv)


def _wandb(argv: list[str]) -> int:
    from rapidun.cli.wandb import main as wandb

    return wandb(argv)


def _index(argv: list[str]) -> int:
    from rapidun.cli.index import main as index

    return index(argv)


def _influence(argv: list[str]) -> int:
    from rapidun.cli.influence import main as influence

    return influence(argv)


def _completion(argv: list[str]) -> int:
    from rapidun.cli.completion import main as completion

    return completion(argv)


SUBCOMMANDS: dict[str, Callable[[list[str]], int]] = {
    "report": _report,
    "doctor": _doctor,
    "pack": _pack,
    "model": _model,
    "store": _store,
    "index": _index,
    "influence": _influence,
    "sweep": _sweep_command,
    "dashboard": _dashboard,
    "wandb": _wandb,
    "completion": _completion,
}
