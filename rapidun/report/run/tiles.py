"""Four blocks of influence of any size as a picture's worth of numbers: some rows at a time are in memory."""

from collections.abc import Iterator, Mapping
from typing import Any

# of one slice of rows, in float64: 32 MB
SLICE_NUMBERS = 1 << 22


def slices(num_rows: int, num_columns: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of slices of at most about SLICE_NUMBERS numbers, at least one row each."""
    rows = max(1, SLICE_NUMBERS // max(1, num_columns))
    for first in range(0, num_rows, rows):
        yield first, min(num_rows, first + rows)


def tile_means(blocks: Mapping[str, Any], *, max_cells: int) -> Any:
    """ff, fr, rf, rr as one [n, m] float64 array, forget first, or where that has more than `max_cells` rows or columns
    as at most about [max_cells, max_cells] means over tiles that never cross the groups' border.
    """
    import numpy as np

    n_forget, asked = np.shape(blocks["ff"])
    n_retain, more = np.shape(blocks["rr"])
    n, m = n_forget + n_retain, asked + more
    halves = [(blocks["ff"], blocks["fr"]), (blocks["rf"], blocks["rr"])]
    if max(n, m) <= max_cells:
        return np.block([list(half) for half in halves]).astype(np.float64)
    rows, columns = tiles(n, n_forget, max_cells=max_cells), tiles(m, asked, max_cells=max_cells)
    ends = [*rows[1:], n]
    sums = np.empty((len(rows), len(columns)))
    at = 0
    while at < len(rows):
        # whole tiles of one half, as many as a slice takes
        first, half = rows[at], halves[rows[at] >= n_forget]
        above = n_forget if rows[at] >= n_forget else 0
        border = n if above else n_forget
        most = at + 1
        while most < len(rows) and ends[most] <= border and (ends[most] - first) * m <= SLICE_NUMBERS:
            most += 1
        cut = slice(first - above, ends[most - 1] - above)
        part = np.concatenate([block[cut] for block in half], axis=1).astype(np.float64)
        sums[at:most] = np.add.reduceat(
            np.add.reduceat(part, [row - first for row in rows[at:most]], axis=0), columns, axis=1
        )
        at = most
    return sums / (np.diff([*rows, n])[:, None] * np.diff([*columns, m])[None, :])


def tiles(n: int, n_forget: int, *, max_cells: int) -> list[int]:
    """Where the tiles of one axis begin; none crosses the groups' border."""
    if n <= max_cells:
        return list(range(n))
    starts = []
    for offset, size in zip((0, n_forget), (n_forget, n - n_forget), strict=True):
        cells = min(size, max(1, round(size * max_cells / n)))
        starts += [offset + (size * cell) // cells for cell in range(cells)] if size else []
    return starts
