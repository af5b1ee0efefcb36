"""The weights file: one line for each row of a group, `{"index": 0, "id": "...", "weight": 1.02}`. No torch here."""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import DataError
from rapidun.base.files import write_jsonl
from rapidun.base.json_keys import DuplicateKey, keys_once

# weights are shares around 1: sums, squares and products with losses of far larger ones leave float32
MOST_WEIGHT = 1e9
# beside the weights files, where unlearning is to renew the forget weights as it goes
DYNAMIC = "dynamic.json"


class WeightLine(NamedTuple):
    """One line of a weights file; `place` is file:line. id or row (the line's `index`) may be absent, not both."""

    place: str
    id: str | None
    row: int | None
    weight: float


def write_weights(path: Path, weights: Sequence[float], *, ids: Sequence[str] | None) -> None:
    """Write one group's weights; without ids every id is null, and readers match by index."""
    names: Sequence[str | None] = [None] * len(weights) if ids is None else ids
    write_jsonl(
        path,
        (
            {"index": index, "id": name, "weight": float(weight)}
            for index, (name, weight) in enumerate(zip(names, weights, strict=True))
        ),
    )


def read_weights(
    path: Path, ids: Sequence[str], *, optional: Collection[str] = (), warnings: list[str] | None = None
) -> list[float]:
    """Read one group's weights in the order of `ids`.

    A line that has an id is matched by it, a line without one (or with null) by its index, the row's place in `ids`.

    Args:
        optional: ids of rows that need no weight, since they are not trained on: nan where they have none.
        warnings: gets a line with counts where an index is not the place of the row that the id names; the id wins.

    Raises: DataError naming file:line for a line that is not a weight, an unknown id or index, a row that occurs
        twice, a weight that is negative or not finite; naming the file for rows without a weight.
    """
    rows_by_id = {name: row for row, name in enumerate(ids)}
    if len(rows_by_id) < len(ids):
        repeated = next(name for row, name in enumerate(ids) if rows_by_id[name] != row)
        raise DataError(f"{path}: need rows with ids of their own to match weights to, got id {repeated!r} twice")
    places: dict[int, str] = {}
    weights = [math.nan] * len(ids)
    elsewhere: list[tuple[WeightLine, int]] = []
    for line in read_lines(path):
        if line.id is not None:
            if line.id not in rows_by_id:
                raise DataError(
                    f"{line.place}: need the id of one of the {len(ids)} rows, got {line.id!r}. "
                    f"Was the file made for other rows? Without ids, lines are matched by index"
                )
            row = rows_by_id[line.id]
            if line.row is not None and line.row != row:
                elsewhere.append((line, row))
        else:
            assert line.row is not None
            row = line.row
            if row >= len(ids):
                raise DataError(f"{line.place}: need an index below {len(ids)}, the number of rows, got {row}")
        if row in places:
            raise DataError(f"{line.place}: need every row once, got {ids[row]!r} again (first at {places[row]})")
        places[row] = line.place
        weights[row] = line.weight
    missing = [name for row, name in enumerate(ids) if row not in places and name not in optional]
    if missing:
        number = _number_of_lines(path)
        raise DataError(
            f"{path}:{number}: need a weight for each of the {len(ids)} rows, got {len(places)} by the last line; "
            f"the first without one has id {missing[0]!r} (index {list(ids).index(missing[0])})"
        )
    if elsewhere and warnings is not None:
        line, row = elsewhere[0]
        warnings.append(
            f"{path}: {len(elsewhere)} of {len(places)} lines have an index that is not the place of the row that "
            f"their id names (first at {line.place}: index {line.row}, but id {line.id!r} is row {row}): weights were "
            f"matched by id. Was the file made for these rows?"
        )
    return weights


def read_lines(path: Path) -> list[WeightLine]:
    """Read a weights file line by line, each line checked on its own.

    Raises: DataError naming file:line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: need a weights file, got no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: need UTF-8, got other bytes at {error.start}") from None
    except OSError as error:
        raise DataError(f"{path}: need a readable weights file, got: {error.strerror or error}") from None
    lines = [_line(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: need at least one weight, got an empty file")
    return lines


def _line(place: str, text: str) -> WeightLine:
    expected = 'need {"index": 0, "id": "...", "weight": 1.0}'
    try:
        row = json.loads(text, object_pairs_hook=keys_once)
    except DuplicateKey as error:
        raise DataError(f"{place}: need every key once, got {error.key!r} again") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: {expected}, got a line that is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: {expected}, got {text.strip()[:60]}")
    name, index, weight = row.get("id"), row.get("index"), row.get("weight")
    if name is None and index is None:
        raise DataError(f"{place}: {expected}, got a line with neither id nor index")
    if name is not None and type(name) not in (str, int):
        raise DataError(f"{place}: id: need a string, got {name!r}")
    if index is not None and (type(index) is not int or index < 0):
        raise DataError(f"{place}: index: need a whole number from 0, got {index!r}")
    if "weight" not in row:
        raise DataError(f"{place}: {expected}, got a line without a weight")
    return WeightLine(place, None if name is None else str(name), index, _weight(place, weight))


def _weight(place: str, weight: Any) -> float:
    if type(weight) not in (int, float):
        raise DataError(f"{place}: weight: need a number, got {weight!r}")
    try:
        number = float(weight)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise DataError(f"{place}: weight: need a finite number of at least 0, got {str(weight)[:40]}")
    if number > MOST_WEIGHT:
        raise DataError(f"{place}: weight: need a number of at most {MOST_WEIGHT:g}, got {number:g}")
    return number


def _number_of_lines(path: Path) -> int:
    return max(1, len(path.read_bytes().rstrip(b"\r\n").split(b"\n")))
