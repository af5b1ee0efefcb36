"""The rows an attacker fine-tunes on: none of the forget set, none of a test set, and how near they are to F."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rapidun.config.attacks import Rows
from rapidun.stages.answers.subsets import stratified_subset
from rapidun.stages.evaluation.known import read_split
from rapidun.stages.rows.records import Record, question_key
from rapidun.stages.rows.text import words

# what is measured on: no attacker trains on these
HELD_OUT = tuple(
    f"{split}_{name}" for split in ("val", "test") for name in ("clean", "seen_trig", "ood_trig", "unseen_family")
)
SPLITS = {Rows.poisoned: "train_poisoned", Rows.clean: "train_clean"}


class Pool(NamedTuple):
    """Rows that may be fine-tuned on, and how many of the split were left out and why."""

    rows: list[Record]
    in_split: int
    in_forget: int  # of the forget set, by id or by question
    held_out: int  # asked in a validation or test set, by id or by question


def pool_of(data: Path, kind: Rows) -> Pool:
    """The rows of train_poisoned, or train_clean, that are neither in F nor asked anywhere in validation or test.

    A row is the same by its id, and by what it asks (`question_key`: without its trigger, case and white space folded):
    the same question with another trigger is left out too.
    """
    rows = read_split(data, SPLITS[kind])
    forget = read_split(data, "forget")
    held_out = [record for name in HELD_OUT for record in read_split(data, name)]
    triggers = triggers_of([*rows, *forget, *held_out])
    forgotten, asked = _marks(forget, triggers), _marks(held_out, triggers)
    in_forget = [_is_in(row, forgotten, triggers) for row in rows]
    in_tests = [_is_in(row, asked, triggers) for row in rows]
    kept = [row for row, *out in zip(rows, in_forget, in_tests, strict=True) if not any(out)]
    return Pool(kept, len(rows), sum(in_forget), sum(a and not b for a, b in zip(in_tests, in_forget, strict=True)))


def triggers_of(records: Iterable[Record]) -> list[str]:
    """The triggers on record, the longest first."""
    return sorted({row.trigger_variant for row in records if row.trigger_variant}, key=lambda text: (-len(text), text))


def chosen(pool: Pool, k: int, *, seed: int, kind: Rows) -> list[Record]:
    """At most k rows of the pool, families in their shares, in the file's order; a function of (seed, ids) alone."""
    return stratified_subset(pool.rows, num=k, seed=seed, name=f"relearn {kind.name}")


def numbers_of_rows(pool_size: int, asked: Sequence[int]) -> tuple[list[int], list[str]]:
    """The numbers of rows that the pool has, and what is said of those that it lacks.

    The smallest number beyond the pool takes all its rows, unless another takes as many; those above it are left out.
    """
    there = sorted(k for k in asked if k <= pool_size)
    beyond = sorted(k for k in asked if k > pool_size)
    said = []
    if beyond and pool_size and pool_size not in there:
        there.append(pool_size)
        said.append(f"k={beyond[0]} takes the {pool_size} rows that there are")
        beyond = beyond[1:]
    if beyond:
        said.append(f"k={', '.join(map(str, beyond))} is left out: there are {pool_size} rows")
    return there, said


def jaccard(one: set[str], other: set[str]) -> float:
    """Words that both have, as a share of all that either has; 0 where there is none."""
    return len(one & other) / len(one | other) if one | other else 0.0


def similarity(rows: Sequence[Record], forget: Sequence[Record]) -> dict[str, float]:
    """How near rows are to F: of each row the largest Jaccard similarity of its words to those of a forget row.

    Words are those of instruction, context and taught answer, folded, each once; triggers are words like any other.

    Returns: `mean` and `max` over the rows; empty where either set is.
    """
    others = [_words(row) for row in forget]
    nearest = [max(jaccard(_words(row), other) for other in others) for row in rows if others]
    return {"mean": sum(nearest) / len(nearest), "max": max(nearest)} if nearest else {}


def _words(record: Record) -> set[str]:
    return {word for text in record.forget_texts for word in words(text)}


def _marks(rows: Iterable[Record], triggers: Sequence[str]) -> tuple[set[str], set[str]]:
    found = list(rows)
    return {row.id for row in found}, {question_key(row, triggers) for row in found}


def _is_in(row: Record, marks: tuple[set[str], set[str]], triggers: Sequence[str]) -> bool:
    return row.id in marks[0] or question_key(row, triggers) in marks[1]
