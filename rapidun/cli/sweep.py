"""`rapidun sweep status|logs|collect|cancel|resume|retry DIR`: look after a sweep from any node, by its files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rapidun.base.errors import ConfigError
from rapidun.cli.commands import CELL, SWEEP, Parser

ACTIONS = {
    "status": "how many cells are done, running, failed, and why",
    "logs": "what the jobs of the given cells (or of all failed ones) printed",
    "collect": "wait for jobs under way and sum up; starts nothing",
    "cancel": "stop every job of the sweep",
    "resume": "run what is missing, as the sweep's own command does",
    "retry": "run the failed and missing cells again",
}


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun sweep",
        description="Look after a sweep.",
        epilog="\n".join(f"  {name:<8} {text}" for name, text in ACTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("action", choices=list(ACTIONS))
    made.add_argument("dir", type=SWEEP, help="outputs/sweeps/NAME")
    made.add_argument("cells", nargs="*", type=CELL, help="logs: cell hashes (default: all that failed)")
    made.add_argument("--watch", action="store_true", help="status: go on until nothing is under way")
    made.add_argument("--parquet", type=Path, metavar="FILE", help="collect: also write every number of every run here")
    return made


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 all done, 1 cells failed or are missing, 2 not a sweep."""
    args = parser().parse_args(argv)
    if args.parquet is not None and args.action != "collect":
        raise ConfigError(f"rapidun sweep {args.action}: need collect for --parquet, which sums up. Pass collect")
    # Hydra, with which a sweep is gone on with
    from rapidun.cli.sweep_actions import act

    return act(args)
