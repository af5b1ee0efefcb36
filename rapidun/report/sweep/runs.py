"""A row for each run of a sweep, with every number: for pandas, R and spreadsheets. As columns, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.base.files import write_atomic
from rapidun.report.metrics import METRICS
from rapidun.report.sweep.cells import Cell, swept_keys
from rapidun.report.sweep.summary import Summary

Column = list[Any]


def run_columns(summary: Summary, *, base: Path | None = None) -> dict[str, Column]:
    """Name -> a value for each run, None where it has none; every run is there, however it ended.

    `cell`, `setting` (which runs of other seeds share), the swept settings, `seed`, `state`, `error`, then every metric
    by name, `path`. A setting is a number where all of its values are.

    Args: base: what paths are relative to; None = the folders as they were named.
    """
    cells = summary.cells
    labels = {group.name: group.label for group in summary.groups}
    columns: dict[str, Column] = {
        "cell": [cell.path.resolve().name for cell in cells],
        "setting": [labels.get(cell.group, " ".join(cell.settings)) for cell in cells],
    }
    for key in swept_keys(cells):
        columns[key] = typed([cell.values.get(key) for cell in cells])
    columns["seed"] = typed([cell.seed or None for cell in cells])
    columns["state"] = [cell.state for cell in cells]
    columns["error"] = [cell.error or None for cell in cells]
    measured = dict.fromkeys(name for cell in cells for name in cell.metrics)
    for name in [*(name for name in METRICS if name in measured), *(name for name in measured if name not in METRICS)]:
        # a setting may be called as a number of its stage is
        columns[f"result.{name}" if name in columns else name] = [cell.metrics.get(name) for cell in cells]
    columns["path"] = [_path(cell, base) for cell in cells]
    return columns


def _path(cell: Cell, base: Path | None) -> str:
    return str(cell.path) if base is None else Path(os.path.relpath(cell.path, base)).as_posix()


def typed(texts: Sequence[str | None]) -> Column:
    """The values of one setting: whole numbers, numbers, true and false where all are, else text; null is None."""
    known = [text for text in texts if text not in (None, "", "null")]
    for read in (_truth, int, float):
        try:
            found = {text: read(text) for text in known if text is not None}
        except ValueError:
            continue
        return [found.get(text) if text is not None else None for text in texts]
    return [None if text in (None, "null") else text for text in texts]


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def as_runs_csv(summary: Summary) -> str:
    """`run_columns` as text, paths relative to the sweep's folder."""
    columns = run_columns(summary, base=summary.sweep_dir)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(csv_text, columns))
    writer.writerows(map(_csv_value, row) for row in zip(*columns.values(), strict=True))
    return buffer.getvalue()


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    return csv_text(value) if isinstance(value, str) else repr(value)


def csv_text(text: str) -> str:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it; numbers stay numbers."""
    if text[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def need_pyarrow() -> None:
    """Raises: ConfigError without it."""
    if find_spec("pyarrow") is None:
        raise ConfigError(
            "--parquet: need the package pyarrow, found none. pip install 'rapidun[tables]', or take runs.csv"
        )


def write_parquet(summary: Summary, path: Path) -> None:
    """`run_columns` as a Parquet file. Raises: ConfigError without pyarrow."""
    need_pyarrow()
    # on request only
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(values) for name, values in run_columns(summary).items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda part: pq.write_table(table, part))
