"""Which training rows drive which answers: the strongest pairs of each block, the strongest rows of each query."""

from dataclasses import dataclass
from typing import Any

from rapidun.report.read import Influence
from rapidun.report.run.plots import shrink

MAX_QUERIES = 160
PER_END = 5
MAP_CELLS = 64
# what each block asks, the training example first
BLOCK_TITLES = {
    "ff": "forget row trained on, forget row asked about",
    "fr": "forget row trained on, retain row asked about",
    "rf": "retain row trained on, forget row asked about",
    "rr": "retain row trained on, retain row asked about",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One entry of a block."""

    block: str
    train: str
    query: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drivers:
    """One query and its strongest training rows, as places in forget ids followed by retain ids."""

    query: int
    helpful: list[tuple[int, float]]  # largest scores, descending, above 0
    harmful: list[tuple[int, float]]  # smallest scores, ascending, below 0


def top_pairs(influence: Influence, *, per_end: int = 2) -> list[Pair]:
    """Per block the `per_end` largest scores, then the smallest (each smallest once more only if it is another pair).

    A row's influence on itself is left out; in FF and RR, symmetric where the queries are the training rows, each pair
    of rows counts once.
    Ties keep the order of the rows.
    """
    import numpy as np

    ids = {"f": influence.forget_ids, "r": influence.retain_ids}
    asked = ids if influence.query_ids is None else dict(zip("fr", influence.query_ids, strict=True))
    pairs = []
    for block, scores in influence.blocks.items():
        if influence.query_ids is not None:
            same = np.array(ids[block[0]], dtype=object)[:, None] == np.array(asked[block[1]], dtype=object)[None, :]
            rows, columns = np.nonzero(~same)
        else:
            rows, columns = np.triu_indices(len(scores), k=1) if block[0] == block[1] else np.indices(scores.shape)
        rows, columns = rows.ravel(), columns.ravel()
        values = np.asarray(scores)[rows, columns]
        order = np.argsort(-values, kind="stable")
        for place in dict.fromkeys([*order[:per_end], *order[-per_end:]]):
            train, query = ids[block[0]][rows[place]], asked[block[1]][columns[place]]
            pairs.append(Pair(block=block, train=train, query=query, score=float(values[place])))
    return pairs


def full_matrix(influence: Influence) -> Any:
    """The four blocks as one [N, N] float64 array, forget rows first; rows = training, columns = queries."""
    import numpy as np

    blocks = influence.blocks
    return np.block([[blocks["ff"], blocks["fr"]], [blocks["rf"], blocks["rr"]]]).astype(np.float64)


def choose_queries(num_forget: int, num_retain: int, *, limit: int = MAX_QUERIES) -> list[int]:
    """At most `limit` queries, evenly spaced within each group; the forget group gets at least half of the places."""
    forget = min(num_forget, max(limit // 2, limit - num_retain))
    retain = min(num_retain, limit - forget)
    chosen = [i * num_forget // forget for i in range(forget)]
    return chosen + [num_forget + i * num_retain // retain for i in range(retain)]


def drivers(matrix: Any, queries: list[int], *, per_end: int = PER_END) -> list[Drivers]:
    """The `per_end` strongest training rows at both ends for each query; a row's influence on itself is left out.

    Args:
        matrix: [N, N], rows = training, columns = queries, in the same order.
    """
    import numpy as np

    found = []
    for query in queries:
        scores = matrix[:, query].copy()
        scores[query] = 0.0
        order = np.argsort(-scores, kind="stable")
        ends = (order[:per_end], order[::-1][:per_end])
        helpful, harmful = ([(int(row), float(scores[row])) for row in end] for end in ends)
        found.append(
            Drivers(
                query=query,
                helpful=[pair for pair in helpful if pair[1] > 0],
                harmful=[pair for pair in harmful if pair[1] < 0],
            )
        )
    return found


def small_map(matrix: Any, num_forget: int) -> tuple[list[list[float]], int, float]:
    """The matrix as at most about 64 by 64 means of tiles that never cross the border between the groups.

    Returns: rows of numbers, how many rows and columns belong to the forget group, the 99th percentile of |score| off
    the diagonal (the end of the colour scale).
    """
    import numpy as np

    n = len(matrix)
    small = shrink(matrix, num_forget, max_cells=MAP_CELLS)
    border = num_forget if n <= MAP_CELLS else min(num_forget, max(1, round(num_forget * MAP_CELLS / n)))
    off = np.abs(small[~np.eye(len(small), dtype=bool)]) if len(small) > 1 else np.abs(small)
    limit = float(np.quantile(off, 0.99)) if off.size else 0.0
    return [[float(f"{value:.3g}") for value in row] for row in small], border, limit or 1.0
