"""`rapidun report DIR...`: writes the report of a run folder, or the summary and index of a sweep folder."""

from collections.abc import Sequence
from pathlib import Path

from rapidun.errors import ArtifactError, DataError
from rapidun.report.read import is_run
from rapidun.report.summary import is_sweep, write_sweep_summary


def report(paths: Sequence[Path]) -> int:
    """Write what belongs into each folder and print where it is.

    Returns: 0.
    Raises: DataError if a path is neither a run folder nor a sweep folder; none is written then.
    """
    for path in paths:
        if not path.is_dir() or not (is_run(path) or is_sweep(path)):
            raise DataError(
                f"{path}: need a run folder (with status.json or result.json) or a sweep folder of such, got "
                f"{'a folder without either' if path.is_dir() else 'no folder'}. Pass rapidun report DIR"
            )
    from rich.console import Console

    from rapidun.report.html import write_run_report, write_sweep_index

    console = Console()
    for path in paths:
        if is_run(path):
            written = write_run_report(path)
        else:
            summary = write_sweep_summary(path)
            for cell in summary.cells:
                try:
                    write_run_report(cell.path)
                except ArtifactError as error:
                    console.print(f"warning: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)
            written = write_sweep_index(path, summary)
            console.print(summary.table())
        console.print(f"report: {written}", highlight=False, markup=False, soft_wrap=True)
    return 0
