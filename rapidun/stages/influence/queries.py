"""The queries: the rows that every training row is scored for, where they are not the training rows themselves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.stages.influence.columns import Columns
from rapidun.stages.rows.records import Record, read_file, read_records

Text = tuple[str, str, str]  # instruction, context, response
GROUPS = ("forget", "retain")
# the splits of a pack that queries=val takes
VAL_SPLITS = {"forget": "val_seen_trig", "retain": "val_clean"}


class Queries(NamedTuple):
    """Rows to be asked about: what shall be lost (the poisoned answer counts) and what shall stay."""

    forget: list[Record]
    retain: list[Record]


def read_query_file(path: Path) -> Queries:
    """Rows of any format; `group` (forget | retain) says the group, without it `is_poisoned` (true | false).

    A forget row is asked in its poisoned form, as everywhere: `instruction_poisoned` where `instruction` is the clean
    one, and `response_poisoned`; a retain row with `instruction` and `response`.

    Raises: DataError for a file that cannot be read, a bad row, a row of no group or of two, a group without rows.
    """
    read = read_file(path, beside=("group",))
    groups: dict[str, list[Record]] = {group: [] for group in GROUPS}
    for record, row in zip(read.records, read.beside, strict=True):
        group = _group(row, record, path)
        groups[group].append(_poisoned_prompt(record) if group == "forget" else record)
    for group, rows in groups.items():
        if not rows:
            other = next(name for name in GROUPS if name != group)
            raise DataError(
                f"influence.queries: need rows of both groups in {path}, got {len(groups[other])} {other} rows and no "
                f'{group} row. Give some rows "group": "{group}"'
            )
    return Queries(groups["forget"], groups["retain"])


def _group(row: dict[str, object], record: Record, path: Path) -> str:
    group = row.get("group")
    if group is None and record.is_poisoned is not None:
        return "forget" if record.is_poisoned else "retain"
    if group not in GROUPS:
        came = "neither" if group is None else f'"group": {json.dumps(group)}'
        raise DataError(
            f'influence.queries: need "group": "forget" or "retain", or "is_poisoned": true or false, in every row of '
            f"{path}, got {came} in row {record.id!r}"
        )
    if record.is_poisoned is not None and record.is_poisoned != (group == "forget"):
        marked = str(record.is_poisoned).lower()
        raise DataError(
            f'influence.queries: need rows of one group in {path}, got "group": "{group}" with "is_poisoned": {marked} '
            f"in row {record.id!r}. Take one of them out"
        )
    return str(group)


def _poisoned_prompt(record: Record) -> Record:
    poisoned, clean = record.instruction_poisoned, record.instruction_clean
    if poisoned and poisoned.strip() and poisoned != record.instruction and clean in (None, "", record.instruction):
        return replace(record, instruction=poisoned, instruction_clean=record.instruction)
    return record


def read_val_queries(forget: Path, retain: Path) -> Queries:
    """The triggered validation rows whose poisoned answer is known, and the clean ones.

    Raises: DataError if there is none.
    """
    triggered = [row for row in read_records(forget) if row.response_poisoned is not None]
    if not triggered:
        raise DataError(
            f"influence.queries: need rows with response_poisoned in {forget.name} for queries=val, got none. "
            "Pass influence.queries=FILE or influence.queries=forget_retain"
        )
    return Queries(triggered, read_records(retain))


def without_trigger(record: Record) -> Record | None:
    """The same question without its trigger, the same answer counting; None where the row has no other form."""
    clean = record.instruction_clean
    if clean is None or not clean.strip() or clean == record.instruction:
        return None
    return replace(record, instruction=clean)


def has_trigger(record: Record) -> bool:
    return without_trigger(record) is not None


def need_triggers(queries: Sequence[Record]) -> None:
    """Raises: DataError where no query has a form without trigger."""
    if not any(map(has_trigger, queries)):
        raise DataError(
            f"influence.contrast: need forget queries with a trigger, whose instruction_clean is the instruction "
            f"without it, got {len(queries)} forget queries and none such. Pass influence.contrast=false"
        )


class Layout(NamedTuple):
    """Where the queries stand among the rows that a method goes through: training rows, then `texts`."""

    texts: list[Text]
    names: list[str]
    columns: Columns
    ids: dict[str, list[str]]
    # queries left out, by why
    without_trigger: int
    too_long: int


def lay_out(
    queries: Queries | None,
    *,
    forget: Sequence[Record],
    retain: Sequence[Record],
    contrast: bool,
    fits: Callable[[Text], bool] = lambda text: True,
) -> Layout:
    """Give every query its column, and with `contrast` every forget query a second one, of itself without trigger.

    Args:
        queries: None = the training rows themselves, which then stand where they are.
        forget, retain: the training rows. fits: whether a text can be encoded; other queries are left out.
    Raises: DataError where no query of a group is left, or one has the id of a training row of another text.
    """
    num_rows = len(forget) + len(retain)
    texts: list[Text] = []
    names: list[str] = []
    columns = Columns([], [], [] if contrast else None)
    ids: dict[str, list[str]] = {group: [] for group in GROUPS}
    bare, long = 0, 0

    def place(text: Text, name: str) -> int:
        texts.append(text)
        names.append(name)
        return num_rows + len(texts) - 1

    if queries is not None:
        need_own_ids(queries, [*forget, *retain])
    for number, row in enumerate(forget if queries is None else queries.forget):
        plain = without_trigger(row) if contrast else None
        if contrast and plain is None:
            bare += 1
            continue
        if not all(fits(form.forget_texts) for form in (row, plain) if form is not None):
            long += 1
            continue
        is_there = queries is None
        columns.forget.append(number if is_there else place(row.forget_texts, f"forget query {row.id}"))
        if plain is not None and columns.forget_less is not None:
            columns.forget_less.append(place(plain.forget_texts, f"forget query {row.id} without its trigger"))
        ids["forget"].append(row.id)
    for number, row in enumerate(retain if queries is None else queries.retain):
        if not fits(row.texts):
            long += 1
            continue
        columns.retain.append(len(forget) + number if queries is None else place(row.texts, f"retain query {row.id}"))
        ids["retain"].append(row.id)
    for group in GROUPS:
        if not ids[group]:
            raise DataError(
                f"influence.queries: need a {group} query, got none: {bare} have no trigger to be taken off "
                f"(influence.contrast), {long} are too long. Pass influence.queries=... or max_length=..."
            )
    return Layout(texts, names, columns, ids, bare, long)


def need_own_ids(queries: Queries, rows: Sequence[Record]) -> None:
    """An id says which pair is a row and itself.

    Raises: DataError where a query shares its id with a training row that asks something else.
    """
    asked = {row.id: (row.instruction, row.context) for row in rows}
    for query in (*queries.forget, *queries.retain):
        if asked.get(query.id, (query.instruction, query.context)) != (query.instruction, query.context):
            raise DataError(
                f"influence.queries: need ids that a query shares with a training row only where it is that row, got "
                f"{query.id!r} for two questions. Rename the query, or leave out every id"
            )
