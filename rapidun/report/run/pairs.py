"""Which training rows drive which answers: for each query the rows of largest positive and negative influence."""

from dataclasses import dataclass
from typing import Any

from rapidun.report.read import Influence
from rapidun.report.run.plots import shrink

MAX_QUERIES = 160
PER_END = 5
MAP_CELLS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Drivers:
    """One query and its strongest training rows, as places in forget ids followed by retain ids."""

    query: int
    helpful: list[tuple[int, float]]  # largest scores, descending, above 0
    harmful: list[tuple[int, float]]  # smallest scores, ascending, below 0


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
