"""Reads influence files in the format of the published RapidUn release.

One JSON object with a key "0" .. "n-1" for each query, a "config" and possibly a "finished_cnt" ("1600/1600": pairs of
40 training rows and 40 queries); other keys are passed over. Each entry holds `helpful` (training indices, most helpful
first), `helpful_infl` (their values), `harmful`, `harmful_infl` (most harmful first) and `test_data`. Or the same
entries as JSON Lines: an entry a line, in query order, or `{"7": entry}`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rapidun.base.errors import DataError
from rapidun.base.json_keys import DuplicateKey, keys_once
from rapidun.stages.mapping.aggregate import Block, Floats, Ints

# products and squares of such numbers, and sums of them, still fit a float; no inner product of gradients is larger
MOST_SCORE = 1e30
BLOCKS = ("ff", "fr", "rf", "rr")


class Ranking(NamedTuple):
    """One list of an entry: training indices in the file's order and their influence."""

    rows: list[int]
    values: list[float]


class Entry(NamedTuple):
    """What the file says of one query; `place` is where, for messages. harmful is None where there is no such list."""

    place: str
    helpful: Ranking
    harmful: Ranking | None


class ReleaseFile(NamedTuple):
    """One influence file, entries in query order; `warnings` are oddities that leave the numbers usable.

    finished: what its run was to finish by its finished_cnt, queries or pairs of training row and query; None = unsaid.
    """

    path: Path
    entries: list[Entry]
    warnings: list[str]
    finished: int | None = None


def read_release(path: Path) -> ReleaseFile:
    """Read one influence file, JSON or JSON Lines, values exactly as written.

    Raises: DataError for a file that cannot be read, missing queries, lists of unequal length, wrong types,
        duplicated or negative indices, values that are not finite. Indices above the number of training rows are
        found by `release_block`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: need an influence file, got no such file. Change mapping.scores") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: need UTF-8 JSON (or a name that ends in .safetensors), got other bytes at {error.start}"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: need a readable influence file, got: {error.strerror or error}") from None
    named: dict[str, tuple[str, Any]] = {}
    for place, key, value in _pairs(path, text):
        if key in named:
            raise DataError(f"{place}: need every query once, got {key!r} again")
        named[key] = (place, value)
    queries = {int(key): item for key, item in named.items() if key.isascii() and key.isdigit()}
    if not queries:
        keys = ", ".join(sorted(named)[:5]) or "nothing"
        raise DataError(f'{path}: need an entry for each query, keys "0", "1", ..., got {keys}')
    missing = sorted(set(range(max(queries) + 1)) - set(queries))
    if missing:
        raise DataError(
            f"{path}: need entries for queries 0 to {max(queries)}, missing are {_some(missing)}. "
            f"Did the influence run end early?"
        )
    entries = [_entry(*queries[query]) for query in range(len(queries))]
    finished, warnings = _check_finished(path, named.get("finished_cnt", ("", None))[1], entries)
    return ReleaseFile(path, entries, [*warnings, *_oddities(path, entries)], finished)


def release_blocks(files: Mapping[str, ReleaseFile]) -> dict[str, Block]:
    """Make the four blocks of four files; the numbers of forget and retain rows are the numbers of queries.

    Raises: DataError if the files disagree on the numbers of rows (two files swapped, say), or an index is too high.
    """
    counts = {name: len(files[name].entries) for name in BLOCKS}
    if counts["ff"] != counts["rf"] or counts["fr"] != counts["rr"]:
        listed = ", ".join(f"{name} {counts[name]} ({files[name].path})" for name in BLOCKS)
        raise DataError(
            f"mapping.scores: need as many queries in ff as in rf (forget rows) and in fr as in rr (retain rows), "
            f"got {listed}. fr means: training rows from forget, queries from retain. Are two files swapped?"
        )
    train = {"ff": counts["ff"], "fr": counts["ff"], "rf": counts["rr"], "rr": counts["rr"]}
    return {name: release_block(files[name], num_train=train[name]) for name in BLOCKS}


def release_block(file: ReleaseFile, *, num_train: int) -> Block:
    """Entries to matrices [num_train, num_query]; a pair that a list leaves out is NaN there.

    Raises: DataError for an index of num_train or more, naming the query.
    """
    num_queries = len(file.entries)
    values, place = _matrix([entry.helpful for entry in file.entries], file, num_train)
    if file.finished not in (None, num_queries, num_queries * num_train):
        raise DataError(
            f"{file.path}: need {num_queries} queries or {num_queries * num_train} pairs of {num_train} training rows "
            f"and queries in finished_cnt, got {file.finished}. Is the file cut short, or one of another pack?"
        )
    rankings = [entry.harmful for entry in file.entries if entry.harmful is not None]
    if len(rankings) < len(file.entries):
        return Block(values, place)
    harmful, harmful_place = _matrix(rankings, file, num_train)
    return Block(values, place, harmful, harmful_place)


def _matrix(rankings: list[Ranking], file: ReleaseFile, num_train: int) -> tuple[Floats, Ints]:
    values = np.full((num_train, len(rankings)), np.nan)
    # rows that are not listed come after those that are
    place = np.full((num_train, len(rankings)), num_train, dtype=np.int64)
    for query, ranking in enumerate(rankings):
        if ranking.rows and max(ranking.rows) >= num_train:
            raise DataError(
                f"{file.entries[query].place}: need training indices below {num_train}, got {max(ranking.rows)}. "
                f"Are two of the files mapping.scores.ff, fr, rf, rr swapped?"
            )
        values[ranking.rows, query] = ranking.values
        place[ranking.rows, query] = np.arange(len(ranking.rows))
    return values, place


def _pairs(path: Path, text: str) -> list[tuple[str, str, Any]]:
    """(place for messages, key, value) of everything in the file; entries of JSON Lines are keyed by their order."""
    try:
        whole = json.loads(text, object_pairs_hook=keys_once)
    except DuplicateKey as error:
        raise DataError(f"{path}: need every key once, got {error.key!r} again") from None
    except RecursionError:
        raise DataError(f"{path}: need an influence file, got JSON that is nested too deeply") from None
    except ValueError as error:
        if len([line for line in text.split("\n") if line.strip()]) < 2:
            raise DataError(f"{path}: need JSON, got a damaged file ({error})") from None
        return _pairs_by_line(path, text)
    if not isinstance(whole, dict):
        raise DataError(f'{path}: need a JSON object with keys "0", "1", ..., got a {_kind(whole)}')
    if "helpful" in whole:
        return [(f"{path}:1", "0", whole)]  # JSON Lines of one line
    return [(f'{path}: query "{key}"', key, value) for key, value in whole.items()]


def _pairs_by_line(path: Path, text: str) -> list[tuple[str, str, Any]]:
    pairs: list[tuple[str, str, Any]] = []
    unnamed = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=keys_once)
        except DuplicateKey as error:
            raise DataError(f"{place}: need every key once, got {error.key!r} again") from None
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place}: need JSON (one object, or one object a line), got a damaged line ({error})"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: need a JSON object, got a {_kind(row)}")
        if "helpful" in row:
            pairs.append((place, str(unnamed), row))
            unnamed += 1
        else:
            pairs += [(place, key, value) for key, value in row.items()]
    return pairs


def _entry(place: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise DataError(f"{place}: need an object with helpful and helpful_infl, got a {_kind(value)}")
    helpful = _ranking(place, value, "helpful")
    # null is as good as absent, in both or in neither
    has_harmful = value.get("harmful") is not None or value.get("harmful_infl") is not None
    return Entry(place, helpful, _ranking(place, value, "harmful") if has_harmful else None)


def _ranking(place: str, entry: dict[str, Any], name: str) -> Ranking:
    rows, values = entry.get(name), entry.get(f"{name}_infl")
    for key, item in ((name, rows), (f"{name}_infl", values)):
        if not isinstance(item, list):
            raise DataError(f"{place}: need a list {key}, got {'none' if item is None else 'a ' + _kind(item)}")
    assert isinstance(rows, list) and isinstance(values, list)
    if len(rows) != len(values):
        raise DataError(
            f"{place}: need as many values in {name}_infl as indices in {name}, got {len(values)} and {len(rows)}"
        )
    for row in rows:
        if type(row) is not int or row < 0:
            raise DataError(f"{place}: need indices of training rows in {name}, got {row!r}")
    if len(set(rows)) < len(rows):
        repeated = sorted({row for row in rows if rows.count(row) > 1})
        raise DataError(f"{place}: need every training row once in {name}, got {_some(repeated)} more than once")
    for row, number in zip(rows, values, strict=True):
        if type(number) not in (int, float) or not _is_finite(number):
            raise DataError(f"{place}: need finite numbers in {name}_infl, got {number!r} for training row {row}")
    return Ranking(rows, [float(number) for number in values])


def _oddities(path: Path, entries: list[Entry]) -> list[str]:
    """Lists that are not as documented: harmful ones in some entries only, values that do not fall (or rise)."""
    lines = []
    harmful = [entry for entry in entries if entry.harmful is not None]
    bare = [entry for entry in entries if entry.harmful is None]
    if harmful and bare:
        lines.append(
            f"mapping: {path}: {len(bare)} of {len(entries)} entries have no list `harmful` (first: {bare[0].place}): "
            f"the others' are not used either"
        )
    for name, order, values in (
        ("helpful", "most helpful first (falling values)", [(e, e.helpful.values) for e in entries]),
        ("harmful", "most harmful first (rising values)", [(e, e.harmful.values) for e in harmful if e.harmful]),
    ):
        odd = [entry for entry, numbers in values if numbers != sorted(numbers, reverse=name == "helpful")]
        if odd:
            lines.append(
                f"mapping: {path}: {len(odd)} of {len(values)} lists `{name}` are not in the order {order} (first: "
                f"{odd[0].place}): the values count as they stand, the order only among equal ones. Are they values of "
                f"another sign, or of other rows?"
            )
    return lines


def _check_finished(path: Path, said: Any, entries: list[Entry]) -> tuple[int | None, list[str]]:
    """What `finished_cnt` says of the influence run: "1600/1600", of so many pairs or queries, or one number of them.

    Pairs are training rows x queries. How many training rows there are, `release_block` knows: lists may be cut.
    """
    if said is None:
        return None, []
    counts = _counts(said)
    if counts is None:
        raise DataError(f'{path}: need a whole number in finished_cnt, or "done/all", got {said!r}')
    done, whole = counts
    num_queries = len(entries)
    num_rows = max(max((*entry.helpful.rows, -1)) + 1 for entry in entries)
    fits = whole == num_queries or (whole % num_queries == 0 and whole // num_queries >= max(num_rows, 1))
    if done < whole or whole < num_queries:
        # every entry is here and has passed its checks: worth a word, not a refusal
        line = f"mapping: {path} says finished_cnt={said} but holds {num_queries} queries. Did its run end early?"
        return whole if fits else None, [line]
    if not fits or done > whole:
        raise DataError(
            f"{path}: need the {whole} entries that finished_cnt speaks of (queries, or pairs with {num_rows} training "
            f"rows), got {num_queries} queries. Is the file cut short?"
        )
    return whole, []


def _counts(said: Any) -> tuple[int, int] | None:
    """(done, all) of "1600/1600", [1600, 1600], 1600, 1600.0 or "1600"; None where it is none of these."""
    parts = said.split("/") if isinstance(said, str) else said if isinstance(said, list) else [said]
    parts = [int(part) if isinstance(part, str) and re.fullmatch(r"\s*[0-9]+\s*", part) else part for part in parts]
    if not all(type(part) is int or (type(part) is float and part.is_integer()) for part in parts):
        return None
    numbers = [int(part) for part in parts]
    if not 1 <= len(numbers) <= 2 or min(numbers) < 0:
        return None
    return numbers[0], numbers[-1]


def _is_finite(number: int | float) -> bool:
    try:
        return abs(number) <= MOST_SCORE
    except OverflowError:  # a whole number beyond the range of a float
        return False


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), "null")
