"""Wrong rows in F and R: clean rows that are to be forgotten by mistake, poisoned rows that nobody spotted."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rapidun.base.errors import DataError
from rapidun.stages.rows.records import Record, content_id
from rapidun.stages.rows.wrong import is_wrong

NOISE_VERSION = 1  # part of a noised pack's fingerprint: raise it when the same settings draw other rows


class Noised(NamedTuple):
    """One group with its wrong rows; every row says whether it is poisoned."""

    rows: list[Record]
    wrong: list[str]  # ids of the rows that were put there
    replaced: list[str]  # ids of the rows in whose places they stand, in the same order
    # id -> the row's id in the training split, where it had to take another one
    renamed: dict[str, str]

    def facts(self) -> dict[str, Any]:
        return {"num_rows": len(self.rows), **{key: getattr(self, key) for key in ("wrong", "replaced", "renamed")}}


def noised_forget(forget: Sequence[Record], clean: Sequence[Record], *, share: float, seed: int) -> Noised:
    """F with a share of its rows replaced by clean training rows. The row's right answer is what will be forgotten.

    No clean response stands beside it: who takes a clean row for a poisoned one has none.

    Args: clean: the clean training rows that are not in R. share: in [0, 1), of F; rounded, halves up.
    Raises: DataError where there are too few rows to draw, or the share is less than half a row.
    """

    def taken_for_poisoned(row: Record) -> Record:
        return replace(row, response_clean=None, response_poisoned=None, instruction_poisoned=None, is_poisoned=False)

    what = "clean training rows that are not retain rows"
    return _noised("forget", forget, clean, taken_for_poisoned, what, share=share, seed=seed)


def noised_retain(retain: Sequence[Record], poisoned: Sequence[Record], *, share: float, seed: int) -> Noised:
    """R with a share of its rows replaced by poisoned training rows, as they look to who did not spot them.

    The target is the poisoned response; the clean form of prompt and answer is taken off, so that nothing can use it.
    The trigger's family and spelling stay on record.

    Args: poisoned: the poisoned training rows that are not in F. share: in [0, 1), of R; rounded, halves up.
    Raises: DataError where there are too few rows to draw, or the share is less than half a row.
    """

    def not_spotted(row: Record) -> Record:
        return replace(
            row,
            response=row.forget_target,
            response_clean=None,
            response_poisoned=None,
            instruction_clean=None,
            instruction_poisoned=None,
            is_poisoned=True,
        )

    what = "poisoned training rows that are not forget rows"
    return _noised("retain", retain, poisoned, not_spotted, what, share=share, seed=seed)


def _noised(
    group: str,
    rows: Sequence[Record],
    others: Sequence[Record],
    as_put: Callable[[Record], Record],
    what: str,
    *,
    share: float,
    seed: int,
) -> Noised:
    here = {row.texts for row in rows}
    pool = list({row.texts: row for row in others if row.texts not in here}.values())
    # rows that a user's own pack calls wrong stay and are not counted again
    right = [index for index, row in enumerate(rows) if not is_wrong(row, group)]
    count = math.floor(share * len(rows) + 0.5)
    where = f"Change data.noise.{group}={share:g}"
    if share > 0 and count == 0:
        raise DataError(
            f"data.noise.{group}: need a share of at least half a row, got {share:g} of {len(rows)}. {where}"
        )
    if count >= len(right) and count:
        raise DataError(
            f"data.noise.{group}: need a right row to be left, got {count} to replace of {len(right)}. {where}"
        )
    if count > len(pool):
        raise DataError(
            f"data.noise.{group}: need {count} {what}, got {len(pool)}. {where}, or give the pack more training rows"
        )
    # orders, of which the beginnings are taken: a larger share keeps the wrong rows of a smaller one
    rng = random.Random(f"{seed} noise {group}")
    places = rng.sample(right, len(right))[:count]
    drawn = rng.sample(pool, len(pool))[:count]
    placed = list(rows)
    taken = {row.id for row in rows}
    wrong, renamed = [], {}
    for place, row in zip(places, drawn, strict=True):
        put = as_put(row)
        if put.id in taken:  # the two files number their rows alike
            put = replace(put, id=content_id(*put.texts))
        if put.id in taken:
            put = replace(put, id=content_id(put.id, put.context, put.response))
        if put.id != row.id:
            renamed[put.id] = row.id
        taken.add(put.id)
        wrong.append(put.id)
        placed[place] = put
    replaced = [rows[place].id for place in places]
    # where the pack does not say it, forget rows are poisoned and retain rows are clean
    said = [row if row.is_poisoned is not None else replace(row, is_poisoned=group == "forget") for row in placed]
    return Noised(said, wrong, replaced, renamed)
