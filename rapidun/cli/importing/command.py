"""`rapidun import DIR|config.yaml`: from a RapidUn checkout to an experiment of ours, key by key."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rapidun.cli.commands import Parser


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun import",
        description="Read a RapidUn checkout (its YAML, packs, influence files and weights; nothing of it is run or "
        "changed) and write an experiment file, and beside it a table that says of every key what became of it.",
        epilog="The experiment is run by its path, from any directory: rapidun +experiment=conf/experiment/NAME.yaml. "
        "docs/from-rapidun.md has an example from end to end.",
    )
    made.add_argument("checkout", type=Path, metavar="DIR|YAML", help="the checkout's folder, or one YAML file of it")
    made.add_argument(
        "--out",
        metavar="NAME",
        help="conf/experiment/NAME.yaml, or a path DIR/experiment/NAME.yaml; default: the YAML's",
    )
    made.add_argument("--force", action="store_true", help="replace files that are there")
    return made


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 written; 2 nothing was written."""
    options = parser().parse_args(argv)
    # Hydra and numpy, which TAB and --help do without
    from rapidun.cli.importing.act import act

    return act(options)
