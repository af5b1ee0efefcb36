"""Which training rows drive which answers: the strongest pairs of each block, the strongest rows of each query."""

from dataclasses import dataclass
from typing import Any

from rapidun.report.read import Influence
from rapidun.report.run.tiles import slices, tile_means

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

    ids = {"f": influence.forget_ids, "r": influence.retain_ids}
    asked = ids if influence.query_ids is None else dict(zip("fr", influence.query_ids, strict=True))
    pairs = []
    for block, scores in influence.blocks.items():
        # on the diagonal and below it the pairs are themselves, or seen already
        half = influence.query_ids is None and block[0] == block[1]
        named = asked[block[1]] if influence.query_ids is not None else None
        for score, row, column in _ends(scores, ids[block[0]], named, half=half, per_end=per_end):
            pairs.append(Pair(block=block, train=ids[block[0]][row], query=asked[block[1]][column], score=score))
    return pairs


def _ends(
    scores: Any, ids: list[str], asked: list[str] | None, *, half: bool, per_end: int
) -> list[tuple[float, int, int]]:
    """(score, row, column) of the largest scores, then of the smallest, some rows at a time.

    Args: asked: names of the columns; a row that asks about itself is left out. half: only what is above the diagonal.
    """
    import numpy as np

    num_columns = scores.shape[1]
    places = {name: column for column, name in enumerate(asked or ())}
    best: list[tuple[float, int, int]] = []
    worst: list[tuple[float, int, int]] = []
    for first, last in slices(len(scores), num_columns):
        part = np.asarray(scores[first:last])
        kept = np.ones(part.shape, dtype=bool)
        if half:
            kept = np.arange(num_columns)[None, :] > np.arange(first, last)[:, None]
        for row in range(first, last) if places else ():
            if (column := places.get(ids[row])) is not None:
                kept[row - first, column] = False
        at = np.flatnonzero(kept)
        values = part.ravel()[at]
        for found, sign in ((best, -1.0), (worst, 1.0)):
            order = _first(sign * values, per_end, last=sign > 0)
            found += [(float(values[i]), first + int(at[i]) // num_columns, int(at[i]) % num_columns) for i in order]
    best = sorted(best, key=lambda one: (-one[0], one[1], one[2]))[:per_end]
    worst = sorted(worst, key=lambda one: (-one[0], one[1], one[2]))[-per_end:]
    return list(dict.fromkeys([*best, *worst]))


def _first(values: Any, number: int, *, last: bool) -> list[int]:
    """Places of the smallest values; of ties those that come first, or last."""
    import numpy as np

    if len(values) > number:
        bound = np.partition(values, number - 1)[number - 1]
        below, ties = np.flatnonzero(values < bound), np.flatnonzero(values == bound)
        left = number - len(below)
        return [*map(int, below), *map(int, ties[len(ties) - left :] if last else ties[:left])]
    return list(range(len(values)))


def choose_queries(num_forget: int, num_retain: int, *, limit: int = MAX_QUERIES) -> list[int]:
    """At most `limit` queries, evenly spaced within each group; the forget group gets at least half of the places."""
    forget = min(num_forget, max(limit // 2, limit - num_retain))
    retain = min(num_retain, limit - forget)
    chosen = [i * num_forget // forget for i in range(forget)]
    return chosen + [num_forget + i * num_retain // retain for i in range(retain)]


def drivers(influence: Influence, queries: list[int], *, per_end: int = PER_END) -> list[Drivers]:
    """The `per_end` strongest training rows at both ends for each query; a row's influence on itself is left out.

    Args: queries: places among the forget rows, then the retain rows.
    """
    import numpy as np

    blocks, num_forget = influence.blocks, len(influence.forget_ids)
    found = []
    for query in queries:
        side, place = ("f", query) if query < num_forget else ("r", query - num_forget)
        scores = np.concatenate([blocks[f"f{side}"][:, place], blocks[f"r{side}"][:, place]]).astype(np.float64)
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


def small_map(influence: Influence) -> tuple[list[list[float]], int, float]:
    """The matrix as at most about 64 by 64 means of tiles that never cross the border between the groups.

    Returns: rows of numbers, how many rows and columns belong to the forget group, the 99th percentile of |score| off
    the diagonal (the end of the colour scale).
    """
    import numpy as np

    num_forget = len(influence.forget_ids)
    n = num_forget + len(influence.retain_ids)
    small = tile_means(influence.blocks, max_cells=MAP_CELLS)
    border = num_forget if n <= MAP_CELLS else min(num_forget, max(1, round(num_forget * MAP_CELLS / n)))
    off = np.abs(small[~np.eye(len(small), dtype=bool)]) if len(small) > 1 else np.abs(small)
    limit = float(np.quantile(off, 0.99)) if off.size else 0.0
    return [[float(f"{value:.3g}") for value in row] for row in small], border, limit or 1.0
