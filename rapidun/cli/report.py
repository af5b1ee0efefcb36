"""`rapidun report DIR...`: the report of a run, the summary and comparison of a sweep, or of several of either."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError, DataError
from rapidun.base.files import write_text
from rapidun.base.limits import refusal
from rapidun.base.screen import screen
from rapidun.cli.commands import FOLDER, Parser
from rapidun.report.read import is_run
from rapidun.report.run.neighbours import Plan
from rapidun.report.run.page import write_run_report
from rapidun.report.sweep.console import show
from rapidun.report.sweep.exports import as_csv, as_markdown, read_sweep, write_sweep_summary
from rapidun.report.sweep.finals import final_commands
from rapidun.report.sweep.page import gather, write_comparison, write_sweep_index
from rapidun.report.sweep.pictures import write_pictures
from rapidun.report.sweep.runs import need_pyarrow, write_parquet
from rapidun.report.sweep.summary import Summary, is_sweep

SEVERAL = Path("comparison.html")


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="rapidun report",
        description="Compare runs. One run folder: its report.html. A sweep folder: report.html, the comparison page, "
        "with sweep.html, summary.csv, .json, .md, and runs.csv, a row for each run. Several: one comparison page of "
        "all of them.",
    )
    made.add_argument("paths", nargs="+", type=FOLDER, metavar="DIR", help="a run folder or a sweep folder")
    made.add_argument("--html", type=Path, metavar="FILE", help="write the comparison page here")
    made.add_argument("--csv", type=Path, metavar="FILE", help="write means and intervals, a line per setting")
    made.add_argument("--parquet", type=Path, metavar="FILE", help="write every number of every run, a row for each")
    made.add_argument("--md", type=Path, metavar="FILE", help="write tables and sentences as Markdown")
    made.add_argument("--png", type=FOLDER, metavar="FOLDER", help="write the plots as pictures for a paper")
    made.add_argument(
        "--budget", metavar="EXPRESSION",
        help="choose among what holds this, e.g. 'ppl_clean <= 1.02 * before.ppl_clean', in place of sweep.budget; "
        "none for no budget",
    )  # fmt: skip
    made.add_argument(
        "--best-overrides", action="store_true",
        help="write nothing; print the commands that evaluate each method's best on test rows",
    )  # fmt: skip
    made.add_argument("--cells", action="store_true", help="write report.html of every cell of a sweep anew, too")
    return made


def main(argv: Sequence[str]) -> int:
    """The command line; see `report`."""
    found = parser().parse_args(argv)
    try:
        if found.best_overrides:
            return best_overrides(found.paths, budget=found.budget)
        return report(
            found.paths, html=found.html, csv=found.csv, md=found.md, parquet=found.parquet, png=found.png,
            cells=found.cells, budget=found.budget,
        )  # fmt: skip
    except OSError as error:
        said = f"report: need readable folders and places to write to, got {error.filename2 or error.filename}"
        said += f" ({error.strerror})"
        raise refusal(error) or DataError(said) from None


def report(
    paths: Sequence[Path],
    *,
    html: Path | None = None,
    csv: Path | None = None,
    md: Path | None = None,
    parquet: Path | None = None,
    png: Path | None = None,
    cells: bool = False,
    budget: str | None = None,
) -> int:
    """Write what belongs into each folder, what the options ask for, and print where it is.

    Args:
        paths: run folders and sweep folders. html: file of the comparison page; by default report.html in the one
            sweep, or comparison.html in the current folder where several are compared. csv, md, parquet: files. png: a
            folder. cells: also write each cell's own report.html anew (a run writes it when it ends). budget: what to
            choose by, an expression over metrics; `none` for no budget, None = the sweep's own.
    Returns: 0.
    Raises: DataError if a path is neither a run folder nor a sweep folder, ConfigError if the budget is none or
        pyarrow is missing for Parquet; nothing is written then.
    """
    for path in paths:
        if not path.is_dir() or not (is_run(path) or is_sweep(path)):
            raise DataError(
                f"{path}: need a run folder (with status.json or result.json) or a sweep folder of such, got "
                f"{'a folder without either' if path.is_dir() else 'no folder'}. Pass rapidun report DIR"
            )
    if parquet is not None:
        need_pyarrow()
    console = screen()
    written: list[Path] = []
    if len(paths) == 1:
        summary = _one(paths[0], console, html, cells, written, budget)
    else:
        summary = gather(paths, budget=budget)
        show(console, summary)
    if html is not None or len(paths) > 1:
        _comparison(summary, html or SEVERAL, paths, console, written)
    if csv is not None or md is not None:
        for file, text in ((csv, as_csv), (md, as_markdown)):
            if file is not None:
                write_text(file, text(summary))
                written.append(file)
    if parquet is not None:
        write_parquet(summary, parquet)
        written.append(parquet)
    if png is not None:
        written += write_pictures(summary, png)
    for path in written:
        console.print(f"report: {path}", soft_wrap=True)
    return 0


def best_overrides(paths: Sequence[Path], *, budget: str | None = None) -> int:
    """Print the commands that evaluate each method's best of a sweep on test rows; write nothing, return 0.

    Raises: DataError if there is not one sweep folder, or nothing may be chosen from it.
    """
    if len(paths) != 1 or is_run(paths[0]):
        raise DataError(f"--best-overrides: need one sweep folder, got {', '.join(map(str, paths))}")
    for line in final_commands(read_sweep(paths[0], budget=budget)):
        print(line)
    return 0


def _one(path: Path, console: Any, html: Path | None, cells: bool, written: list[Path], budget: str | None) -> Summary:
    """One run or one sweep: what belongs into its folder."""
    if is_run(path):
        if budget is not None:
            raise DataError("--budget: need a sweep folder or several folders to choose among, got one run")
        written.append(write_run_report(path))
        return gather([path])
    summary = write_sweep_summary(path, budget=budget)
    if cells:
        plan = Plan(path)
        for cell in summary.cells:
            if cell.path.is_dir():
                try:
                    write_run_report(cell.path, plan=plan)
                except ArtifactError as error:
                    _warn(console, str(error))
    if html is None:
        _comparison(summary, path / "report.html", [path], console, written)
    written.append(write_sweep_index(path, summary, comparison=False))
    show(console, summary)
    return summary


def _comparison(summary: Summary, file: Path, paths: Sequence[Path], console: Any, written: list[Path]) -> None:
    names = [path.resolve().name for path in paths]
    title = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    for problem in write_comparison(summary, file, title=title):
        _warn(console, problem)
    written.append(file)


def _warn(console: Any, message: str) -> None:
    console.print(f"warning: {message}", style="yellow", soft_wrap=True)
