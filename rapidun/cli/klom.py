"""`rapidun klom DIR...`: unlearned models against retrained ones over several seeds, from the margins of their runs."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.base.files import write_json
from rapidun.base.screen import screen
from rapidun.cli.commands import FOLDER, Parser
from rapidun.report.klom import FEWEST, klom_rows
from rapidun.report.metrics import format_number
from rapidun.report.sweep.page import gather


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun klom",
        description="KLOM (arXiv 2410.23232): KL between the margins of unlearned and of retrained models, point by "
        f"point, over at least {FEWEST} different models of each. Needs runs with evaluation.privacy.run=[margins] and "
        "poison.retrain=true, of several poison.seed.",
    )
    made.add_argument("paths", nargs="+", type=FOLDER, metavar="DIR", help="a sweep folder, or run folders")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    return made


def main(argv: Sequence[str]) -> int:
    """Print a line for each setting and set of points; 0. Raises: DataError, ArtifactError; nothing is written then."""
    found = parser().parse_args(argv)
    for path in found.paths:
        if not path.is_dir():
            raise DataError(f"{path}: need a run folder or a sweep folder, got no folder. Pass rapidun klom DIR...")
    rows = klom_rows(gather(found.paths).cells)
    if found.json is not None:
        write_json(found.json, [asdict(row) for row in rows])
    from rich.table import Table

    table = Table(title="KLOM, nats: KL(margins of models || margins of retrained models)", title_justify="left")
    for name in ("setting", "models", "points"):
        table.add_column(name, overflow="fold")
    for name in ("mean", "median", "95 %", "by chance"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.label, f"{row.num_models} {row.role}, {row.num_retrained} retrained", f"{row.num_points} {row.points}",
            *map(format_number, (row.mean, row.median, row.high, row.chance)),
        )  # fmt: skip
    screen().print(table)
    return 0
