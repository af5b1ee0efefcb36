"""Parquet, Arrow and the folders that `datasets` writes: read with pyarrow, no code of the data is ever run."""

import json
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.text import short_message
from rapidun.stages.rows.formats.source import RawRow, Source, Values
from rapidun.stages.rows.formats.words import listed

PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"
# of a folder written by Dataset.save_to_disk, and of one written by DatasetDict.save_to_disk
STATE, SPLITS = "state.json", "dataset_dict.json"
_BATCH = 1024


def parquet(path: Path) -> Source:
    """Raises: DataError without pyarrow, and for a file that it cannot read."""
    _need_pyarrow(path)
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        columns = list(file.schema_arrow.names)
    except (ArrowException, OSError) as error:
        raise _unreadable(path, "Parquet", error) from None
    return _source(path, columns, (batch for batch in file.iter_batches(batch_size=_BATCH)), "Parquet")


def arrow(path: Path) -> Source:
    """A single Arrow file, of the stream or the file form. Raises: as `parquet`."""
    _need_pyarrow(path)
    return _arrow_files(path, [path])


def datasets_folder(path: Path) -> Source:
    """The rows of a folder that `datasets` saved, in its order. Raises: as `parquet`; DataError for several splits."""
    _need_pyarrow(path)
    return _arrow_files(path, files_of(path))


def files_of(folder: Path) -> list[Path]:
    """The data files of a folder that `datasets` saved.

    Raises: DataError for a folder of several splits, one that names files elsewhere, or a damaged one.
    """
    folder = one_split(folder)
    names = [entry.get("filename") for entry in _read(folder / STATE).get("_data_files") or []]
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise DataError(f"{folder / STATE}: need the names of data files in _data_files, got {names!r}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: need the data files that {STATE} names, got none of {listed(missing)}")
    return [folder / name for name in names]


def is_datasets_folder(path: Path) -> bool:
    return path.is_dir() and ((path / STATE).is_file() or (path / SPLITS).is_file())


def splits_of(folder: Path) -> list[str]:
    """The splits of a saved DatasetDict; none of any other folder."""
    if not (folder / SPLITS).is_file():
        return []
    names = _read(folder / SPLITS).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise DataError(f"{folder / SPLITS}: need a list of splits, got {names!r}")
    return names


def one_split(folder: Path) -> Path:
    """The folder itself, or that of its only split."""
    names = splits_of(folder)
    if not names:
        return folder
    if len(names) > 1:
        raise DataError(
            f"{folder}: need one split, got a folder of {len(names)} ({listed(names)}). Name one: {folder / names[0]}"
        )
    return folder / names[0]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: need JSON as `datasets` writes it, got: {short_message(error)}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: need a JSON object as `datasets` writes it, got {type(found).__name__}")
    return found


def _arrow_files(path: Path, files: list[Path]) -> Source:
    import pyarrow as pa

    def batches(file: Path) -> Iterator[Any]:
        with pa.memory_map(str(file)) as stream:
            yield from _opened(stream)

    try:
        with pa.memory_map(str(files[0])) as stream:
            reader = _opened(stream, schema=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(files[0], "Arrow", error) from None
    return _source(path, list(reader.names), (batch for file in files for batch in batches(file)), "Arrow")


def _opened(stream: Any, *, schema: bool = False) -> Any:
    """The schema, or the batches, of an Arrow stream or file."""
    import pyarrow as pa

    is_file = stream.read(len(ARROW_MAGIC)) == ARROW_MAGIC
    stream.seek(0)
    reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
    if schema:
        return reader.schema
    return (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)


def _source(path: Path, columns: list[str], batches: Iterator[Any], what: str) -> Source:
    again = [name for name, count in Counter(columns).items() if count > 1]
    if again:
        raise DataError(
            f"{path}: need columns of distinct names, got {listed(list(map(repr, again)))} again. Rename one of them"
        )
    return Source(_rows(path, batches, what), Values.typed, columns)


def _rows(path: Path, batches: Iterator[Any], what: str) -> Iterator[RawRow]:
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in batches:
            columns = [_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield RawRow(f"{path}:row {number}", dict(zip(batch.schema.names, values, strict=True)))
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, what, error) from None


def _values(column: Any) -> list[object]:
    """Python values; of 32 and 16 bits the shortest decimal that means the same (0.1, not 0.10000000149011612)."""
    from pyarrow import types

    values: list[object] = column.to_pylist()
    if types.is_float32(column.type) or types.is_float16(column.type):
        import numpy as np

        kind = np.float32 if types.is_float32(column.type) else np.float16
        return [None if value is None else float(str(kind(value))) for value in values]  # type: ignore[arg-type]
    return values


def _need_pyarrow(path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise DataError(
            f"{path}: need the package pyarrow to read Parquet, Arrow and folders of `datasets`, got none. Install it "
            "(pip install 'rapidun[datasets]'), or write the rows as JSON Lines"
        )


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    return DataError(f"{path}: need {what}, got a file that cannot be read as such ({short_message(error)})")
