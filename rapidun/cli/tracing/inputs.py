"""What is asked and what is searched: the bad outputs, and the training rows of files and packs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.config.data import FieldsConfig, MultiTurn
from rapidun.config.index import RESPONSES
from rapidun.stages.data.fields import TO_FORGET, poisoned_form, settle
from rapidun.stages.data.files import splits_in
from rapidun.stages.rows.formats.detect import is_there, local
from rapidun.stages.rows.records import Record, content_id, read_file, read_records
from rapidun.stages.rows.spelling import Spelling

# in this order: what stands in several is named by the first
TRAINING = ("train_poisoned", "train_clean", "forget", "retain")
Say = Callable[[str], None]


class TrainingRows(NamedTuple):
    """records: with the answer that was trained on as `response`. files: of each record the file it is from.
    packs: folders among what was named."""

    records: list[Record]
    files: list[str]
    packs: list[Path]


def spelling_of(given: Sequence[str], multi_turn: str) -> Spelling:
    """Args: given: FIELD=COLUMN each, checked by the command line."""
    fields = FieldsConfig(**{name: column for name, _, column in (text.partition("=") for text in given)})
    return Spelling.of(fields, MultiTurn[multi_turn])


def read_queries(path: Path, spelling: Spelling, *, say: Say) -> list[Record]:
    """The bad outputs, each once: the poisoned prompt and answer where a row has two forms.

    Raises: as `read_records`.
    """
    rows = read_records(path, spelling)
    settled = [poisoned_form(row) for row in rows]
    changed = sum(one.texts != other.texts for one, other in zip(rows, settled, strict=True))
    if changed:
        say(f"{changed} of {len(rows)} queries have a poisoned form beside another: that is the bad output")
    first = {row.texts: row for row in reversed(settled)}
    kept = [row for row in settled if first[row.texts] is row]
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} of {len(rows)} queries are the same as another one and count once")
    return kept


def read_rows(paths: Sequence[Path], spelling: Spelling, *, response: str | None, say: Say) -> TrainingRows:
    """All training rows, in order. A pack's rows are read as a run trains on them.

    A row of the same id and texts in two files is one row; of two rows that share only the id the later one is named
    by its content.

    Args: response: which answer of a file's rows counts; None: `response`, said where a row has two.
    Raises: DataError for what cannot be read, and rows of a pack that contradict themselves.
    """
    records: list[Record] = []
    files: list[str] = []
    packs: list[Path] = []
    known: dict[str, Record] = {}
    again, renamed = 0, 0
    for name, rows in _parts(paths, spelling, response=response, packs=packs, say=say):
        for row in rows:
            other = known.get(row.id)
            if other is not None and other.texts == row.texts:
                again += 1
                continue
            if other is not None:
                row = replace(row, id=content_id(*row.texts))
                while row.id in known:
                    row = replace(row, id=content_id(row.id, row.context, row.response))
                renamed += 1
            known[row.id] = row
            records.append(row)
            files.append(name)
    if again:
        say(f"{again} rows stand in two of the files and count once")
    if renamed:
        say(f"{renamed} rows share an id with a row of another text: they are named by their content")
    return TrainingRows(records, files, packs)


def _parts(
    paths: Sequence[Path], spelling: Spelling, *, response: str | None, packs: list[Path], say: Say
) -> list[tuple[str, list[Record]]]:
    parts = []
    for path in paths:
        splits = splits_in(path) if path.is_dir() and not is_there(path) else {}
        found = [split for split in TRAINING if split in splits]
        if found:
            packs.append(path)
            parts += _pack_parts(path, splits, found, spelling, say=say)
            continue
        if path.is_dir() and not is_there(path):
            raise DataError(
                f"trace: need a file of rows or a pack's folder (train_poisoned, train_clean, forget or retain in it), "
                f"got {path}. Change --rows"
            )
        read = read_file(local(path), spelling)
        for note in read.notes:
            say(note)
        differ = sum(row.forget_target != row.response for row in read.records)
        if differ and response is None:
            say(
                f"{differ} of {len(read.records)} rows of {path.name} have a response_poisoned that is not their "
                "`response`; `response` counts. Pass --response poisoned for what a poisoned model learnt"
            )
        answer = RESPONSES[response or "response"]
        parts.append((path.name, [replace(row, response=answer(row)) for row in read.records]))
    return parts


def _pack_parts(
    path: Path, splits: dict[str, Path], found: Sequence[str], spelling: Spelling, *, say: Say
) -> list[tuple[str, list[Record]]]:
    parts, faults = [], []
    # the forget and retain rows are training rows too, whatever they are called there
    seen: set[tuple[str, str, str]] = set()
    for split in found:
        settled = settle(split, read_records(splits[split], spelling))
        faults += settled.faults
        for line in settled.warnings:
            say(line)
        rows = [row for row in settled.rows if split in TRAINING[:2] or row.texts not in seen]
        seen.update(row.texts for row in settled.rows)
        if rows:
            parts.append((f"{path.name}/{splits[split].name}", rows))
    if faults:
        raise DataError("\n".join(faults))
    counts = ", ".join(f"{len(rows)} of {name.rpartition('/')[2]}" for name, rows in parts)
    say(f"{path}: {counts}{', poisoned answers where a row has two' if set(found) & set(TO_FORGET) else ''}")
    return parts


def say_verbatim(queries: Sequence[Record], rows: Sequence[Record], *, say: Say) -> None:
    """Queries that are training rows word for word find themselves, and say nothing of what is behind an output."""
    trained = {row.texts for row in rows}
    same = [query for query in queries if query.texts in trained]
    if same:
        names = ", ".join(query.id for query in same[:3]) + (", ..." if len(same) > 3 else "")
        say(
            f"{len(same)} of {len(queries)} queries are training rows word for word ({names}): each finds itself. "
            "Outputs of the model on other prompts say more"
        )
