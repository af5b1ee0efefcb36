"""From influence blocks [train, query] to one score for each row: diagonal, transform, top k, aggregate, fuse."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)

# numbers of a block that are worked on at once (32 MB)
BLOCK_NUMEL = 1 << 22


class Block(NamedTuple):
    """Influence of every training row on every query, in float64.

    values: [num_train, num_query], larger = more helpful; NaN where a file does not list the pair.
    place: [num_train, num_query], the pair's place in its query's list, which decides ties; None = lower index first.
    harmful, harmful_place: the same of a file's own list of harmful rows; None where there is no such list.
    same: [num_train, num_query] bool, where the query is the training row itself; None = i = j in a square block.
    """

    values: Floats
    place: Ints | None = None
    harmful: Floats | None = None
    harmful_place: Ints | None = None
    same: Bools | None = None


class Aggregated(NamedTuple):
    """scores: [num_train]. zero_share: share of zeros in the block after top k, None without top k."""

    scores: Floats
    zero_share: float | None


def aggregate_block(
    values: Floats,
    *,
    place: Ints | None = None,
    mode: str = "value",
    aggregate: str = "median",
    num_top: int = 10,
    top_k: int | None = None,
    lowest: bool = False,
    drop_diagonal: bool = False,
    same: Bools | None = None,
) -> Aggregated:
    """Aggregate over queries what each training row does to them.

    Per query (column): leave out i = j, transform the values, keep the top k (the others become 0).
    Then per training row: median or mean over the queries that are left; 0 if none is.

    Args:
        values: [num_train, num_query] float64. NaN (not listed) counts as the last choice and as 0 under top k.
        place: [num_train, num_query], smaller wins a tie under top k; None = lower index first.
        mode: value | rank | robust, see `transform`. aggregate: median | mean | top, the mean over the row's `num_top`
            highest queries (all where there are fewer).
        lowest: keep the k lowest values instead of the k highest.
        drop_diagonal: leave out i = j; the block must be square, or `same` say which pairs are a row and itself.
        same: [num_train, num_query] bool; None = i = j.
    Raises: ValueError for NaN without top k, or an infinite value.
    Source: RapidUn (arXiv 2512.04457); exclusion of i = j is ours.
    """
    if np.isinf(values).any() or (np.isnan(values).any() and (top_k is None or mode != "value")):
        raise ValueError("aggregate_block: need finite values, got NaN or infinity")
    if drop_diagonal and same is not None:
        return _aggregate_others(
            values, ~same, place=place, mode=mode, aggregate=aggregate, num_top=num_top, top_k=top_k, lowest=lowest
        )
    num_train, num_query = values.shape
    kept = np.empty((num_train, num_query))
    num_zeros, num_pairs = 0, 0
    # some queries at a time: what is made of them on the way takes several times their room
    for start in range(0, num_query, max(1, BLOCK_NUMEL // max(1, num_train))):
        queries = slice(start, min(start + max(1, BLOCK_NUMEL // max(1, num_train)), num_query))
        part, ties = values[:, queries], None if place is None else place[:, queries]
        if drop_diagonal:  # query j loses row j: [num_train - 1, queries]
            part = _without(part.T, start).T
            ties = None if ties is None else _without(ties.T, start).T
        part = transform(part, mode=mode)
        if top_k is not None:
            part = keep_top(part, k=top_k, place=ties, lowest=lowest)
            num_zeros, num_pairs = num_zeros + int((part == 0).sum()), num_pairs + part.size
        kept[:, queries] = _with(part.T, start).T if drop_diagonal else part
    zero_share = None if top_k is None else num_zeros / num_pairs if num_pairs else 0.0
    if num_query - drop_diagonal <= 0:
        return Aggregated(np.zeros(num_train), zero_share)
    scores = np.empty(num_train)
    for start in range(0, num_train, max(1, BLOCK_NUMEL // num_query)):
        rows = slice(start, min(start + max(1, BLOCK_NUMEL // num_query), num_train))
        scores[rows] = _reduced(_without(kept[rows], start) if drop_diagonal else kept[rows], aggregate, num_top)
    return Aggregated(scores, zero_share)


def _reduced(values: Floats, aggregate: str, num_top: int) -> Floats:
    """[num_train, num_query] -> [num_train]."""
    if aggregate == "top":
        values = np.sort(values, axis=1)[:, -num_top:]
    reduce = np.median if aggregate == "median" else np.mean
    return np.asarray(reduce(values, axis=1), dtype=np.float64)


def _aggregate_others(
    values: Floats,
    other: Bools,
    *,
    place: Ints | None,
    mode: str,
    aggregate: str,
    num_top: int,
    top_k: int | None,
    lowest: bool,
) -> Aggregated:
    """`aggregate_block` over the pairs that are not a row and itself; other: [num_train, num_query] bool."""
    kept = np.zeros_like(values)
    for query, rows in enumerate(other.T):
        column = transform(values[rows, query : query + 1], mode=mode)
        if top_k is not None:
            ties = None if place is None else place[rows, query : query + 1]
            column = keep_top(column, k=top_k, place=ties, lowest=lowest)
        kept[rows, query] = column[:, 0]
    scores = [
        float(_reduced(row[pairs][None], aggregate, num_top)[0]) if pairs.any() else 0.0
        for row, pairs in zip(kept, other, strict=True)
    ]
    zero_share = None
    if top_k is not None:
        zero_share = float(np.mean(kept[other] == 0)) if other.any() else 0.0
    return Aggregated(np.asarray(scores, dtype=np.float64), zero_share)


def transform(values: Floats, *, mode: str) -> Floats:
    """Put the values of each query (column) on a common footing.

    value: as they are.
    rank: (number below + (number equal + 1) / 2) / n, the mid-rank in (0, 1]; never 0, which top k uses for "not kept".
    robust: (v - median) / (1.4826 * median|v - median|). Where more than half of the values are equal, so that the
        median deviation is 0, the scale is 1.2533 * mean|v - median| (equal to the standard deviation for a normal,
        as 1.4826 MAD is); a constant column becomes 0.
    """
    if mode == "value" or values.size == 0:
        return values
    if mode == "rank":
        columns = [_mid_ranks(column) / len(column) for column in values.T]
        return np.stack(columns, axis=1)
    deviation = values - np.median(values, axis=0)
    scale = 1.4826 * np.median(np.abs(deviation), axis=0)
    scale = np.where(scale > 0, scale, 1.2533 * np.mean(np.abs(deviation), axis=0))
    return deviation / np.where(scale > 0, scale, 1.0)


def keep_top(values: Floats, *, k: int, place: Ints | None = None, lowest: bool = False) -> Floats:
    """Keep the k highest (or lowest) values of each column; the others, and NaN, become 0.

    Ties go to the smaller `place`, or to the lower row index where there is none.
    """
    key = values if lowest else -values
    # NaN sorts last in either direction
    order = np.argsort(key, axis=0, kind="stable") if place is None else np.lexsort((place, key), axis=0)
    kept = np.zeros_like(values)
    chosen = order[:k]
    np.put_along_axis(kept, chosen, np.take_along_axis(values, chosen, axis=0), axis=0)
    return np.nan_to_num(kept, nan=0.0)


def _mid_ranks(column: Floats) -> Floats:
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return np.asarray((below + (counts + 1) / 2)[inverse], dtype=np.float64)


def _without(rows: NDArray[_T], first: int) -> NDArray[_T]:
    """[m, n], rows first, first + 1, ... of a square -> [m, n - 1]: each row without its entry on the diagonal."""
    m, n = rows.shape
    return rows[~np.eye(m, n, first, dtype=bool)].reshape(m, max(n - 1, 0))


def _with(rows: Floats, first: int) -> Floats:
    """[m, n - 1] -> [m, n], zeros on the diagonal: the inverse of `_without`."""
    m, n = len(rows), rows.shape[1] + 1
    whole = np.zeros((m, n))
    whole[~np.eye(m, n, first, dtype=bool)] = rows.reshape(-1)
    return whole


def fuse(
    aggregated: Mapping[str, Floats],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    delta: float = 1.0,
    harmful: Mapping[str, Floats] | None = None,
    alpha_harm: float = 1.0,
    beta_harm: float = 1.0,
    gamma_harm: float = 1.0,
    delta_harm: float = 1.0,
) -> tuple[Floats, Floats]:
    """Weigh what a row does to its own group against what it does to the other group.

    S_f = alpha * agg(FF) - beta * agg(FR),    S_r = gamma * agg(RR) - delta * agg(RF);  with `harmful`:
    S_f -= alpha_harm * agg(FF_harm) + beta_harm * agg(FR_harm),
    S_r -= gamma_harm * agg(RR_harm) + delta_harm * agg(RF_harm).

    Args:
        aggregated, harmful: by block name: ff, fr [num_forget]; rr, rf [num_retain].
    Returns: S_f [num_forget], S_r [num_retain].
    Source: RapidUn (arXiv 2512.04457).
    """
    forget = alpha * aggregated["ff"] - beta * aggregated["fr"]
    retain = gamma * aggregated["rr"] - delta * aggregated["rf"]
    if harmful is not None:
        forget = forget - (alpha_harm * harmful["ff"] + beta_harm * harmful["fr"])
        retain = retain - (gamma_harm * harmful["rr"] + delta_harm * harmful["rf"])
    return forget, retain
