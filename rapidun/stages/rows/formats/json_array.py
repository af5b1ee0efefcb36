"""One JSON array of objects, in one line or laid out over many."""

import json
from collections.abc import Iterator
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.base.json_keys import DuplicateKey, keys_once
from rapidun.stages.rows.formats.source import BOM, RawRow, open_bytes
from rapidun.stages.rows.formats.words import kind_of, listed

# the whole document is held in memory
MAX_BYTES = 1 << 30
_BLANK = " \t\r\n"


def json_array(path: Path) -> Iterator[RawRow]:
    """Rows in order, as `file:row N`. Raises: DataError for broken JSON with its line, and for what is no object."""
    text = read_document(path)
    decoder = json.JSONDecoder(object_pairs_hook=keys_once)
    place = _skip(text, 0) + 1  # behind the bracket
    number = 0
    while True:
        place = _skip(text, place)
        if text[place : place + 1] == "]" and number == 0:
            break
        number += 1
        where = f"{path}:row {number}"
        try:
            row, place = decoder.raw_decode(text, place)
        except DuplicateKey as error:
            raise DataError(f"{where}: need every field once, got {error.key!r} again. Delete one of them") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: need one JSON object, got broken JSON: {error.msg} at line {error.lineno}, column "
                f"{error.colno}. Is the file cut off?"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: need one JSON object, got JSON that cannot be read: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: need one JSON object, got {kind_of(row)}")
        yield RawRow(where, row)
        place = _skip(text, place)
        end = text[place : place + 1]
        place += 1
        if end == "]":
            break
        if end != ",":
            came = f"{end!r}" if end else "the end of the file"
            raise DataError(f"{where}: need `,` or `]` behind it, got {came}. Is the file cut off?")
    rest = text[place if number else place + 1 :].strip()
    if rest:
        raise DataError(f"{path}: need one JSON array, got more behind its end ({rest[:20]!r})")


def object_fault(path: Path) -> DataError:
    """What to say of a file that is one JSON object and no row."""
    try:
        whole = json.loads(read_document(path))
    except (ValueError, RecursionError) as error:
        return DataError(f"{path}: need a JSON array or JSON Lines, got JSON that cannot be read: {error}")
    held = listed(list(whole)) if isinstance(whole, dict) else kind_of(whole)
    return DataError(
        f"{path}: need a JSON array of rows, or one row a line, got one object over several lines ({held}). Write its "
        "list of rows to a file of its own"
    )


def is_one_object(path: Path) -> bool:
    """Whether the whole document is a single JSON object laid out over several lines."""
    try:
        return isinstance(json.loads(read_document(path)), dict)
    except (ValueError, RecursionError):
        return False


def read_document(path: Path) -> str:
    """Raises: DataError for a file that is too large or not UTF-8."""
    with open_bytes(path) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(
            f"{path}: need a JSON array of at most {MAX_BYTES >> 30} GiB, got a larger one. Write it as JSON Lines"
        )
    content = content.removeprefix(BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: need UTF-8, got byte 0x{content[error.start]:02x}. Convert the file to UTF-8"
        ) from None


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in _BLANK:
        place += 1
    return place
