"""What a reader gives: rows as they stand in a file, before anybody asks what their fields mean."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, NamedTuple

from rapidun.base.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
FORMATS = "JSON Lines, a JSON array, CSV, TSV, Parquet, Arrow or a folder written by `datasets`"


class Values(Enum):
    """What a value that is no text means."""

    json = "json"  # a number is a number, and no answer
    text = "text"  # CSV: everything is text as it is written, an empty cell is no value
    typed = "typed"  # Parquet, Arrow: a number is the text that it is shown as


class RawRow(NamedTuple):
    """place: `file:line` or `file:row N`, for messages."""

    place: str
    fields: dict[str, object]


@dataclass
class Source:
    """The rows of one file. columns: those of a table; None where each row has its own. notes: what was read how."""

    rows: Iterator[RawRow]
    values: Values = Values.json
    columns: list[str] | None = None
    notes: list[str] = field(default_factory=list)


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where they are gzip.

    Raises: DataError for a file that cannot be opened, or (while it is read) one whose packing is damaged.
    """
    try:
        with path.open("rb") as start:
            packed = start.read(2) == GZIP_MAGIC
        stream: IO[bytes] = gzip.GzipFile(path, "rb") if packed else path.open("rb")  # type: ignore[assignment]
    except FileNotFoundError:
        raise DataError(f"{path}: need a file of rows ({FORMATS}), got no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: need a file of rows, got a folder that `datasets` did not write") from None
    except OSError as error:
        raise DataError(f"{path}: need a readable file, got: {error.strerror or error}") from None
    with stream:
        try:
            yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: need a whole gzip file, got one that is cut or damaged ({error})") from None


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """The file as UTF-8, line ends as they are. Raises: as `open_bytes`; DataError for another encoding."""
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            yield text
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: need UTF-8, got byte 0x{error.object[error.start]:02x}. Convert the file to UTF-8"
            ) from None


def beginning(path: Path, count: int = 65536) -> bytes:
    """The first bytes of a file, unpacked, without a byte order mark.

    Raises: as `open_bytes`; DataError for UTF-16.
    """
    with open_bytes(path) as stream:
        start = stream.read(count)
    if start.startswith(_OTHER_BOMS):
        raise DataError(f"{path}: need UTF-8, got UTF-16. Convert the file to UTF-8")
    return start.removeprefix(BOM)
