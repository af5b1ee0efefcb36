"""JSON Lines: one object a line."""

import json
from collections.abc import Iterator
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.base.json_keys import DuplicateKey, keys_once
from rapidun.stages.rows.formats.source import BOM, RawRow, open_bytes
from rapidun.stages.rows.formats.words import kind_of

MAX_LINE_BYTES = 1 << 20


def json_lines(path: Path) -> Iterator[RawRow]:
    """Rows by line; blank lines are skipped. Raises: DataError as `file:line: expected, came`."""
    for number, text in _lines(path):
        place = f"{path}:{number}"
        yield RawRow(place, _parse_object(text, place))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of the lines that are not blank."""
    with open_bytes(path) as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 2):
            number += 1
            place = f"{path}:{number}"
            if number == 1:
                raw = raw.removeprefix(BOM)
            line = raw.rstrip(b"\r\n")
            if len(line) > MAX_LINE_BYTES:
                size = len(raw)
                while not raw.endswith(b"\n") and (raw := stream.readline(MAX_LINE_BYTES)):
                    size += len(raw)
                raise DataError(
                    f"{place}: need lines of at most {MAX_LINE_BYTES:,} bytes, got {size:,} bytes. "
                    f"Is the file one JSON array rather than one object per line?"
                )
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place}: need UTF-8, got byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line. "
                    f"Convert the file to UTF-8"
                ) from None
            if text.strip():
                yield number, text


def _parse_object(text: str, place: str) -> dict[str, object]:
    try:
        row = json.loads(text, object_pairs_hook=keys_once)
    except DuplicateKey as error:
        raise DataError(f"{place}: need every field once, got {error.key!r} again. Delete one of them") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: need one JSON object, got broken JSON: {error.msg} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:  # an endless number, or brackets nested without end
        raise DataError(f"{place}: need one JSON object, got JSON that cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: need one JSON object per line, got {kind_of(row)}")
    return row
