"""What may be typed: the sub-commands, the flags of a run, and the pieces that all their parsers share."""

import argparse
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rapidun.base.errors import ConfigError

# types of arguments: completion offers files for Path, and what these say; CELL is one of the sweep before it
FOLDER, SWEEP = partial(Path), partial(Path)
MODEL, PACKAGED_MODEL, CELL, OVERRIDE = partial(str), partial(str), partial(str), partial(str)


class SubCommand(NamedTuple):
    """Its module has `main(argv) -> status` and `parser()`; what follows its name, and what it does, for --help."""

    module: str
    usage: str
    help: str

    def load(self) -> Any:
        return import_module(self.module)


SUBCOMMANDS = {
    "report": SubCommand(
        "rapidun.cli.report", "DIR...", "report.html of a run or sweep, one comparison of several; --csv --md --png"
    ),
    "klom": SubCommand(
        "rapidun.cli.klom", "DIR... [--json FILE]", "unlearned models against retrained ones over seeds (KLOM)"
    ),
    "certify": SubCommand(
        "rapidun.cli.certify",
        "DIR [--out FOLDER]",
        "certificate.html and .json of a run: what was tried, what came of it, what was not",
    ),
    "export": SubCommand(
        "rapidun.cli.export",
        "RUN OUT [--merge]",
        "the unlearned model as a folder that loads by itself, with tokenizer and model card",
    ),
    "sweep": SubCommand(
        "rapidun.cli.sweep", "status|logs|collect|cancel|resume|retry DIR", "look after a sweep, from any node"
    ),
    "dashboard": SubCommand(
        "rapidun.cli.dashboard", "DIR [--publish]", "a W&B workspace and report of a sweep or a run"
    ),
    "wandb": SubCommand("rapidun.cli.wandb", "sync DIR", "upload what was tracked offline"),
    "doctor": SubCommand(
        "rapidun.cli.doctor.command",
        "[key=value ...]",
        "what this machine has; what of these settings will not work, and what to do",
    ),
    "import": SubCommand(
        "rapidun.cli.importing.command",
        "DIR|YAML [--out NAME]",
        "a RapidUn checkout as an experiment, key by key; +experiment=PATH runs it",
    ),
    "pack": SubCommand("rapidun.cli.pack", "build|check", "make a pack from clean instructions; look at one"),
    "model": SubCommand("rapidun.cli.model", "fetch NAME [DIR]", "a small real model without access to the hub"),
    "store": SubCommand("rapidun.cli.store", "list|verify|prune", "the stages' results in outputs/store"),
    "verify": SubCommand(
        "rapidun.cli.verify",
        "DIR [--json]",
        "whether a run's or a sweep's result follows from the bytes that are stored",
    ),
    "influence": SubCommand(
        "rapidun.cli.influence",
        "check OVERRIDE...",
        "fidelity and cost of an influence setting on a sample of rows",
    ),
    "index": SubCommand(
        "rapidun.cli.index",
        "build|verify|fit|score|top",
        "an index of a large training set's gradients on disk, and queries to it",
    ),
    "trace": SubCommand(
        "rapidun.cli.tracing.command",
        "QUERIES --rows FILE...",
        "from bad outputs to the training rows to blame; --pack DIR: what to unlearn",
    ),
    "completion": SubCommand(
        "rapidun.cli.completion", "bash|zsh|fish", 'the script for TAB: eval "$(rapidun completion bash)"'
    ),
}


class Parser(argparse.ArgumentParser):
    """Faults of the command line come out like those of the configuration: one message, status 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}. See {self.prog} --help")


def run_parser() -> Parser:
    """The flags of a run and of a sweep; overrides may stand anywhere between them."""
    parser = Parser(prog="rapidun", add_help=False, allow_abbrev=False)
    # looked at before all others
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    info = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=info)
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd", type=FOLDER)
    # main.py has taken it by then: every sub-command knows it
    parser.add_argument("--extend", type=Path, action="append")
    return parser


def parse_run(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into flags and overrides, in any order.

    Raises: ConfigError.
    """
    parser = run_parser()
    options, overrides = parser.parse_known_args(argv)
    unknown = [text for text in overrides if text.startswith("-")]
    if unknown:
        parser.error(f"no such option: {' '.join(unknown)}")
    if options.multirun and (options.cfg or options.info):
        parser.error("--cfg and --info show one run; leave out -m")
    if options.config_dir and not options.config_dir.is_dir():
        parser.error(f"--config-dir: need a folder, got {options.config_dir}")
    return options, overrides
