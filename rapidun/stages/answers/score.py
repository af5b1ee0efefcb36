"""Log-probability of given responses under the model, a prompt read once for all responses to it."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rapidun.models.batching import batching
from rapidun.models.losses import IGNORE
from rapidun.stages.answers.reading import (
    Ask,
    ResponseScore,
    Row,
    asks_of,
    in_batches,
    longest_together,
    num_tokens,
    read,
)
from rapidun.stages.rows.encode import Encoded


def comparable(one: ResponseScore, other: ResponseScore) -> bool:
    """Whether one of two responses can be called the likelier: tokens of both count, and no score is NaN.

    A response may be impossible (-inf); two that are cannot be told apart.
    """
    means = (one.mean, other.mean)
    is_number = one.num_tokens > 0 and other.num_tokens > 0 and not any(map(math.isnan, means))
    return is_number and max(means) > -math.inf


class Scores:
    """Responses to be scored, and the scores that are there. Rows with the same tokens and response are one."""

    def __init__(self, rows: Sequence[Encoded], *, on_batch: Callable[[list[int]], None] = lambda batch: None) -> None:
        """Args: on_batch: told the indices of the rows that are done, of equal ones the first."""
        self._rows = [row_of(row) for row in rows]
        self._first: dict[Row, int] = {}
        for index, row in enumerate(self._rows):
            self._first.setdefault(row, index)
        self._on_batch = on_batch
        # nothing stands before the first token: none of a row of one is predicted
        self._found = {row: ResponseScore(0.0, 0) for row in self._first if len(row[0]) <= max(row[1], 1)}

    @property
    def missing(self) -> list[Row]:
        return [row for row in self._first if row not in self._found]

    def add(self, found: Mapping[Row, ResponseScore]) -> None:
        if found:
            self._found |= found
            self._on_batch([self._first[row] for row in found])

    def in_order(self) -> list[ResponseScore]:
        return [self._found[row] for row in self._rows]


def score_responses(
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    tokens_per_batch: int,
    on_batch: Callable[[list[int]], None] = lambda batch: None,
    scores: Scores | None = None,
) -> list[ResponseScore]:
    """S_i and n_i of each row, in the order of the rows.

    Rows with the same tokens and the same response are computed once, and so is a prompt of several responses where the
    architecture lets rows lie end to end.

    Args:
        model: a causal language model in eval mode; rows: encoded examples.
        tokens_per_batch: most tokens of one batch, padding counted. on_batch: told the indices of the rows that are
        done. scores: of these rows, where some were scored while their prompts were read (`generate_greedy`).
    """
    scores = Scores(rows, on_batch=on_batch) if scores is None else scores
    missing = scores.missing
    if missing:
        alone = not batching(model, pad_token_id=pad_token_id).right
        longest = 0 if alone else longest_together(model)
        for packed in (True, False):
            some = [row for row in missing if (len(row[0]) <= longest) is packed]
            fits = partial(_fits, max_tokens=tokens_per_batch, packed=packed, alone=alone)
            for asks in in_batches(asks_of({}, some, shared=packed), fits):
                scores.add(read(model, asks, pad_token_id=pad_token_id).scores)
    return scores.in_order()


def _fits(asks: list[Ask], *, max_tokens: int, packed: bool, alone: bool) -> bool:
    return num_tokens(asks, packed=packed) <= max_tokens and not alone


def row_of(row: Encoded) -> Row:
    return tuple(row.input_ids), num_prompt_tokens(row)


def num_prompt_tokens(row: Encoded) -> int:
    """How many tokens stand before the response."""
    return next((place for place, label in enumerate(row.labels) if label != IGNORE), len(row.labels))
