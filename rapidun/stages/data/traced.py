"""From rows in the order in which they are to blame to a pack: what to forget, what to keep, and what is left open."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.stages.data.pack_build import stratified_by_category
from rapidun.stages.rows.records import Record, question_key


class TracedPack(NamedTuple):
    """forget: the first rows, whole. retain: drawn from the clean ones. train_clean: all that may count as clean,
    retain included. The rest is in neither: `near` the cut, called poisoned by their own file though they were not
    taken (`labelled`), asking what a forget row asks (`same_question`)."""

    forget: list[Record]
    retain: list[Record]
    train_clean: list[Record]
    near: int
    labelled: int
    same_question: int


def traced_pack(rows: Sequence[Record], *, num_forget: int, num_apart: int, retain_ratio: int, seed: int) -> TracedPack:
    """Cut the rows behind the first `num_forget`, and draw what is to be kept from those that are far from the cut.

    The first `num_apart` rows (of those behind the cut at most half) lie near it: some of them may be to blame too,
    and a poisoned row among the retain rows would be taught again. Of what is left, `retain_ratio` rows for each
    forget row are drawn, each category with its share.

    Args: rows: with the answer that the model was trained on as `response` (or `response_poisoned`), the first to
        blame first. seed: of the draw.
    Raises: DataError where there is nothing to forget or nothing to keep.
    """
    # a file that calls such a row clean is contradicted here
    forget = [replace(row, is_poisoned=row.is_poisoned or None) for row in rows[:num_forget]]
    others = rows[num_forget:]
    if not forget or not others:
        raise DataError(
            f"trace: need rows to forget and rows to keep, got {len(forget)} and {len(others)} of {len(rows)}. "
            "Change --num-forget"
        )
    near = min(max(0, num_apart - num_forget), len(others) // 2)
    asked = {question_key(row) for row in forget}
    clean, labelled, same = [], 0, 0
    for row in others[near:]:
        if row.is_poisoned or row.trigger_variant or row.response_poisoned is not None:
            labelled += 1
        elif question_key(row) in asked:
            same += 1
        else:
            clean.append(row)
    if not clean:
        raise DataError(
            f"trace: need rows to keep, got none: of {len(others)} others {near} are near the cut, {labelled} are "
            f"called poisoned, {same} ask what a row to forget asks. Pass a smaller --num-forget, or more --rows"
        )
    rng = random.Random(f"{seed} traced retain")
    drawn = stratified_by_category(clean, retain_ratio * len(forget), rng)
    return TracedPack(forget, [clean[place] for place in sorted(drawn)], clean, near, labelled, same)
