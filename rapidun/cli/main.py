"""The command line: sub-commands, help, and what a fault or an interrupt means; run.py has runs and sweeps.

Exit status: 0 all well; 1 a stage or some sweep cells failed; 2 the configuration or an input is wrong; 128 and the
signal's number (130, 143, 129) where Ctrl-C, SIGTERM or SIGHUP stopped it.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.limits import refusal
from rapidun.base.machine import spin_less
from rapidun.base.redact import hide
from rapidun.cli.commands import SUBCOMMANDS, parse_run
from rapidun.cli.help import help_text, version
from rapidun.config import extend, extensions

# these belong to Hydra alone: they neither run anything nor take overrides of ours
HYDRA_ONLY = ("--hydra-help", "--shell-completion", "-sc")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    spin_less()
    try:
        argv = _extend(argv)
        status = _start(argv)
        # a full disk behind it would otherwise show when nobody can say so any more
        sys.stdout.flush()
        return status
    except RapidunError as error:
        return _complain(error, starts=not (argv and argv[0] in SUBCOMMANDS))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader (head, less) has seen enough
        return 0
    except Exception as error:
        told = refusal(error)
        if told is None:
            raise
        return _complain(told, starts=not (argv and argv[0] in SUBCOMMANDS))
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()


def _extend(argv: list[str]) -> list[str]:
    """Load what extends rapidun: installed packages, and the files that --extend names; the other arguments.

    Raises: ConfigError.
    """
    rest, files = [], []
    todo = iter(argv)
    for text in todo:
        if text == extensions.FLAG:
            files.append(next(todo, ""))
        elif text.startswith(f"{extensions.FLAG}="):
            files.append(text.partition("=")[2])
        else:
            rest.append(text)
    extend.load_installed()
    for file in files:
        if not file or file.startswith("-") or "=" in file.partition("/")[0]:
            raise ConfigError(
                f"command line: {extensions.FLAG}: need a Python file, got {file!r}. Pass --extend FILE.py"
            )
        extend.load_file(file)
    if extensions.everything(extensions.Kind.metric):
        # refuses a name that is taken, before anything runs
        from rapidun.report import metrics as _  # noqa: F401
    return rest


def _start(argv: list[str]) -> int:
    if argv and argv[0] in SUBCOMMANDS:
        # on import it misses a kernel that quantised models on the CPU could be faster with; a run says no more
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        return int(SUBCOMMANDS[argv[0]].load().main(argv[1:]))
    return _run(argv)


def _drop_output() -> None:
    """Let the interpreter not fail on flushing what nobody can take."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> int:
    if any(flag in argv for flag in ("--help", "-h")):
        print(help_text(), end="")
        return 0
    for_hydra = any(flag in argv for flag in HYDRA_ONLY)
    options, overrides = (None, argv) if for_hydra else parse_run(argv)
    if options is not None and options.version:
        print(f"rapidun {version()}")
        return 0
    # Hydra takes its time
    from rapidun.cli.run import call_hydra, start

    return call_hydra(overrides) if options is None else start(options, overrides)


def _complain(error: RapidunError, *, starts: bool) -> int:
    """Print what is wrong, one fault a line, and return 2.

    Args: starts: it was to start a run or a sweep, so that there is something to say of what was run.
    """
    faults = error.faults if isinstance(error, ConfigError) else [str(error)]
    if len(faults) == 1:
        print(f"rapidun: {faults[0]}", file=sys.stderr)
    else:
        what = "" if not starts else ", nothing was run" if not error.ran else ""
        print(f"rapidun: {len(faults)} faults{what}", file=sys.stderr)
        for fault in faults:
            print(f"  {fault}", file=sys.stderr)
    if error.ran:
        print(f"  {error.ran}", file=sys.stderr)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        print(hide("".join(traceback.format_exception(error))), file=sys.stderr)
    return 2
