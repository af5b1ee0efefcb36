"""From scores of rows for queries to one order of the rows: within a signal, and over several that must agree.

Every query ranks all rows by each signal; a row's agreement is the sum of 1 / (C + rank) over these lists (reciprocal
rank fusion). Scores of signals are not of one unit and their tails differ, ranks are alike; and a row that one query
puts first counts though the others do not see it, which a mean of ranks would lose.

Source: Cormack, Clarke, Buettcher 2009 (SIGIR), C = 60; that it beats mean ranks here is measured (docs/trace.md).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rapidun.config.trace import Signal

Floats = NDArray[np.float64]
C = 60.0

# how the scores for several queries become one number a row. Gradients: a query's own few rows stand out and the rest
# is noise of both signs, so that a mean over queries loses them (docs/trace.md has both)
OVERALL: dict[Signal, Callable[[NDArray[np.float32]], Floats]] = {
    Signal.repsim: lambda scores: scores.mean(axis=1, dtype=np.float64),
    Signal.bm25: lambda scores: scores.mean(axis=1, dtype=np.float64),
    Signal.gradients: lambda scores: scores.max(axis=1).astype(np.float64),
}


class Ranked(NamedTuple):
    """The rows in order.

    order: [N] row numbers, the first to blame first. agreement: [N] by row number, the sum of reciprocal ranks.
    overall: of each signal [N], one number a row. ranks: of each signal [N], by `overall`, from 1; rows of equal scores
    share the mean of theirs. best_query: [N] the query that ranks the row highest.
    """

    order: NDArray[np.int64]
    agreement: Floats
    overall: dict[Signal, Floats]
    ranks: dict[Signal, Floats]
    best_query: NDArray[np.int64]


def rank_rows(scores: Mapping[Signal, NDArray[np.float32]]) -> Ranked:
    """Order rows by one signal's overall score, or by the agreement of several.

    Of equal rows the earlier one comes first. Memory: a few [N] beside the scores.

    Args: scores: of each signal [N, Q], finite; larger = more alike.
    Raises: ValueError for scores of other shapes, or none; ArithmeticError for scores that are no numbers.
    """
    shapes = {values.shape for values in scores.values()}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"rank_rows: need scores of one shape [N, Q], got {sorted(shapes)}")
    for signal, values in scores.items():
        if not np.isfinite(values).all():
            row, query = np.argwhere(~np.isfinite(values))[0].tolist()
            raise ArithmeticError(f"{signal.name}: got a score of {values[row, query]} for row {row}, query {query}")
    num_rows, num_queries = next(iter(shapes))
    agreement = np.zeros(num_rows)
    best_query, best_rank = np.zeros(num_rows, dtype=np.int64), np.full(num_rows, np.inf)
    for query in range(num_queries):
        # one column at a time: ranks of all would be twice the scores again
        found = [average_ranks(values[:, query]) for values in scores.values()]
        agreement += sum(1.0 / (C + ranks) for ranks in found)
        rank = np.mean(found, axis=0)
        closer = rank < best_rank
        best_query[closer], best_rank[closer] = query, rank[closer]
    overall = {signal: OVERALL[signal](values) for signal, values in scores.items()}
    ranks = {signal: average_ranks(values) for signal, values in overall.items()}
    by = next(iter(overall.values())) if len(overall) == 1 else agreement
    return Ranked(np.argsort(-by, kind="stable"), agreement, overall, ranks, best_query)


def average_ranks(scores: NDArray[np.floating]) -> Floats:
    """[N] ranks from 1 = the largest; equal scores share the mean of their ranks. Example: 5, 7, 5 -> 2.5, 1, 2.5."""
    _, inverse, counts = np.unique(-scores.astype(np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def combined(ranked: Ranked) -> Floats:
    """[N] one number a row that has a distance, for the cut: the mean over signals of standardised overall scores.

    A signal that tells no row from another adds nothing.
    """
    parts = []
    for values in ranked.overall.values():
        spread = float(values.std())
        parts.append((values - values.mean()) / spread if spread > 0 else np.zeros_like(values))
    return np.mean(parts, axis=0)
