"""CSV and TSV: a header of distinct names, then one row each; quotes may hold separators and line ends."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.stages.rows.formats.source import RawRow, Source, Values, open_text
from rapidun.stages.rows.formats.words import listed

MAX_CELL = 1 << 20
# what was meant as a quoted cell
_LOOSE = re.compile(r'[ \t]+".*"[ \t]*', re.DOTALL)
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def separated(path: Path, delimiter: str) -> Source:
    """The table of a CSV (`,`) or TSV (tab) file.

    A header that the expected separator does not divide, and just one of the others does, is divided by that one: said
    in `notes`. An empty cell is no value; a blank line is no row.

    Raises: DataError for a header without names, or with one twice; while rows are read, for a row of more or fewer
        cells than the header, for quotes that do not close, and for those with a blank before them.
    """
    with open_text(path) as text:
        start = text.readline(MAX_CELL)
    chosen = _delimiter(start, delimiter)
    notes = []
    if chosen != delimiter:
        notes.append(f"{path.name} is separated by {_NAMES[chosen]}s, not {_NAMES[delimiter]}s: read as such")
    rows = _cells(path, chosen)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if not header:
        return Source(iter(()), Values.text, None, notes)
    again = [name for name, count in Counter(header).items() if count > 1]
    if again:
        raise DataError(
            f"{path}:1: need a header that names every column once, got {listed(list(map(repr, again)))} again. Rename "
            "one of the columns"
        )
    return Source(_rows(path, header, rows), Values.text, header, notes)


def _rows(path: Path, header: list[str], cells: Iterator[tuple[int, list[str]]]) -> Iterator[RawRow]:
    for number, (line, values) in enumerate(cells, start=1):
        place = f"{path}:row {number}"
        if len(values) != len(header):
            raise DataError(
                f"{place}: need {len(header)} cells, as the header has, got {len(values)} (line {line}). Put quotes "
                "around a cell that holds the separator or a line end"
            )
        loose = next((value for value in values if _LOOSE.fullmatch(value)), None)
        if loose is not None:
            raise DataError(
                f"{place}: need quotes directly behind a separator, got a blank between them ({loose[:40]!r}, line "
                f"{line}), which makes the quotes part of the text. Take the blank away"
            )
        # an index without a name, as pandas writes it, is no column
        fields: dict[str, object] = {name: value or None for name, value in zip(header, values, strict=True) if name}
        yield RawRow(place, fields)


def _cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line of its end, cells) of every row that is not blank."""
    with open_text(path) as text:
        # of the module, for all readers: raised only while this one works
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        while True:
            before = csv.field_size_limit(MAX_CELL)
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"{path}:{reader.line_num}: need rows of cells, got what cannot be read: {error}. A quote inside a "
                    "quoted cell is written twice"
                ) from None
            finally:
                csv.field_size_limit(before)
            if values is None:
                return
            if values:
                yield reader.line_num, values


def _delimiter(line: str, expected: str) -> str:
    dividing = [one for one in _NAMES if len(next(csv.reader([line], delimiter=one), [])) > 1]
    return dividing[0] if len(dividing) == 1 and expected not in dividing else expected
