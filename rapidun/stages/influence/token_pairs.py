"""Which pairs of rows are looked at by token: for some queries, the training rows that pull hardest either way."""

from typing import NamedTuple

from torch import Tensor


class QueryPairs(NamedTuple):
    """One query and its training rows, as row numbers."""

    query: int
    train: list[int]


def strongest_pairs(scores: Tensor, *, num_forget: int, num_queries: int) -> list[QueryPairs]:
    """The training row that helps a query most and the one that harms it most, for queries of both groups.

    Args:
        scores: [N, N], rows = training examples, columns = queries; forget rows first. A row is not its own pair.
        num_queries: taken evenly from forget and retain rows, those with the largest score of another row first.
    """
    others = scores.detach().double().clone()
    others.fill_diagonal_(0.0)
    strength = others.abs().amax(dim=0)
    groups = [range(num_forget), range(num_forget, len(scores))]
    ordered = [sorted(group, key=lambda query: (-float(strength[query]), query)) for group in groups]
    half = (num_queries + 1) // 2
    chosen = [*ordered[0][:half], *ordered[1][: num_queries - min(half, len(ordered[0]))]]
    pairs = []
    for query in chosen:
        column = others[:, query]
        found = []
        if float(column.max()) > 0:
            found.append(int(column.argmax()))
        if float(column.min()) < 0:
            found.append(int(column.argmin()))
        if found:
            pairs.append(QueryPairs(query, found))
    return pairs
