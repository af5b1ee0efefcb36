"""Which format a file has: by its name and its content, which must not contradict each other."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.base.files import sha256_file, sha256_json
from rapidun.config import extensions
from rapidun.stages.rows.formats import columnar
from rapidun.stages.rows.formats.hub import address, fetch, is_hub
from rapidun.stages.rows.formats.json_array import is_one_object, json_array, object_fault
from rapidun.stages.rows.formats.json_lines import json_lines
from rapidun.stages.rows.formats.separated import separated
from rapidun.stages.rows.formats.source import FORMATS, GZIP_MAGIC, RawRow, Source, Values, beginning

# text formats may be packed: rows.csv.gz
LINES, JSON, CSV, TSV = (".jsonl", ".ndjson"), (".json",), (".csv",), (".tsv",)
TEXTS = (*LINES, *JSON, *CSV, *TSV)
PARQUET, ARROW = (".parquet",), (".arrow",)
# in the order in which a pack's folder is searched
ENDINGS = (*LINES, *JSON, *CSV, *TSV, *PARQUET, *ARROW, *(f"{ending}.gz" for ending in TEXTS))


# ending -> the reader of it that an extension brings
READERS: dict[str, extensions.Added] = {}


def _add(one: extensions.Added) -> None:
    READERS.update(dict.fromkeys(one.traits["endings"], one))


extensions.subscribe(extensions.Kind.reader, _add)


def all_endings() -> tuple[str, ...]:
    """The endings of files of rows, in the order in which a pack's folder is searched."""
    return (*ENDINGS, *READERS)


def _added_rows(path: Path, one: extensions.Added) -> Iterator[RawRow]:
    """Raises: DataError for what its reader cannot read, and for rows that are no dicts."""
    place = f"{path}:row 1"
    try:
        for number, row in enumerate(one.made(path), start=1):
            place = f"{path}:row {number}"
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{place}: need a dict for each row from the reader {one.name}, got {type(row).__name__}. Change "
                    f"{one.origin.name}"
                )
            yield RawRow(place, {str(key): value for key, value in row.items()})
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{place}: need a file that the reader {one.name} reads ({one.origin.name}), got {type(error).__name__}: "
            f"{error}"
        ) from error


def ending_of(name: str) -> str:
    """`.csv.gz` of `rows.CSV.gz`; empty where no format has such a name."""
    lower = name.lower()
    found = [ending for ending in all_endings() if lower.endswith(ending)]
    return max(found, key=len, default="")


def local(name: str | Path) -> Path:
    """The file or folder that a name means: its own path, or the local copy of a file on the hub."""
    return fetch(address(str(name)), ENDINGS) if is_hub(str(name)) else Path(name).expanduser()


def is_there(path: Path) -> bool:
    """Whether there is a file, or a folder written by `datasets`."""
    return path.is_file() or columnar.is_datasets_folder(path)


def plain_lines(path: Path) -> bool:
    """Whether a file is JSON Lines by its name, so that its bytes say all of it; else its format says it too."""
    return path.is_file() and ending_of(path.name) in ("", *LINES)


def fingerprint(path: Path) -> str:
    """SHA-256 of the file's bytes; of a folder, of those of its data files in their order."""
    if not path.is_dir():
        return sha256_file(path)
    return sha256_json([sha256_file(file) for file in columnar.files_of(path)])


def open_rows(path: Path) -> Source:
    """The rows of a file as they stand there.

    Raises: DataError for no such file, one of an unknown format, or one whose name and content contradict each other.
    """
    if path.is_dir():
        if not columnar.is_datasets_folder(path):
            raise DataError(f"{path}: need a file of rows, got a folder that `datasets` did not write")
        return columnar.datasets_folder(path)
    ending = ending_of(path.name)
    if ending in READERS:
        return Source(_added_rows(path, READERS[ending]), values=Values.typed)
    start = _start(path, ending)
    if start.startswith(columnar.PARQUET_MAGIC) or ending in PARQUET:
        _agree(path, ending in PARQUET, start.startswith(columnar.PARQUET_MAGIC), "Parquet", ".parquet")
        return columnar.parquet(path)
    if start.startswith(columnar.ARROW_MAGIC) or ending in ARROW:
        _agree(path, ending in ARROW, not _first(start) or start[:1] not in b"[{", "Arrow", ".arrow")
        return columnar.arrow(path)
    text = ending.removesuffix(".gz")
    first = _first(start)
    if text in (*CSV, *TSV):
        if first in ("{", "["):
            raise DataError(
                f"{path}: need {text[1:].upper()}, as the name says, got JSON. Rename it to .jsonl or .json"
            )
        return separated(path, "," if text in CSV else "\t")
    if not text and first not in ("{", "["):
        if not first:
            return Source(iter(()))
        raise DataError(
            f"{path}: need {FORMATS}, by a name that ends in {', '.join(ENDINGS[:7])} (text: or .gz), got "
            f"{path.suffix or 'no ending'}. Rename the file"
        )
    return _json(path, text, first, start)


def _json(path: Path, ending: str, first: str, start: bytes) -> Source:
    if first == "[" and not (ending in LINES and _closes_in_line(start)):
        notes = [f"{path.name} holds one JSON array, not JSON Lines: read as such"] if ending in LINES else []
        return Source(json_array(path), notes=notes)
    if ending in JSON:
        if first == "{" and is_one_object(path) and not _closes_in_line(start):
            raise object_fault(path)
        notes = [f"{path.name} holds JSON Lines, not one JSON array: read as such"] if first == "{" else []
        return Source(_lines_of(path), notes=notes)
    return Source(json_lines(path))


def _lines_of(path: Path) -> Iterator[RawRow]:
    yield from json_lines(path)


def _closes_in_line(start: bytes) -> bool:
    """Whether more than one line follows, and the first one is closed: JSON Lines, whatever stands in the lines."""
    lines = [line.strip() for line in start.split(b"\n") if line.strip()]
    if not lines:
        return False
    opened = lines[0][:1]
    closed = lines[0].endswith(b"}" if opened == b"{" else b"]")
    # a single line that is one array is an array; a single object is a row
    return closed and (len(lines) > 1 or opened == b"{")


def _start(path: Path, ending: str) -> bytes:
    start = beginning(path)
    packed = ending.endswith(".gz") or path.name.lower().endswith(".gz")
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == GZIP_MAGIC
    _agree(path, packed, is_gzip, "gzip", ".gz")
    return start


def _agree(path: Path, named: bool, held: bool, what: str, ending: str) -> None:
    """Raises: DataError where the name says one thing and the content another."""
    if named and not held:
        raise DataError(f"{path}: need {what}, as the name says, got something else. Rename the file")
    if held and not named:
        raise DataError(f"{path}: need a name that ends in {ending} for a file of {what}. Rename the file")


def _first(start: bytes) -> str:
    return start.lstrip()[:1].decode("utf-8", errors="replace")
