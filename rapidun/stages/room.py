"""What scores of every row for every row take of memory, known before anything is loaded.

Bytes a pair of rows at the fullest moment, as benchmarks/room.py measures them (docs/LOG.md): the products in float64
and in float32, the scores in float32, and the copies of both that the file is written from.
"""

import math
from collections.abc import Callable

from rapidun.base.text import byte_size
from rapidun.config.influence import InfluenceConfig, InfluenceMethod, Precondition

# influence: 8 + 4 + 4, or 4 + 4 and the same once more for the file
PAIR_BYTES = 16
# mapping: its blocks in float64, their strengths, one block by row, and the blocks as they are read
MAPPING_PAIR_BYTES = 28
# what both have beside: blocks of rows that are worked on at once
BASE_BYTES = 1 << 29
# so few fit everywhere
FEW_ROWS = 1000
# less is not worth a word
WORTH_SAYING = 1_000_000_000
INDEX = "An index takes K numbers a row, whatever their number: rapidun index build (docs/index_on_disk.md)"


SKETCHED = (InfluenceMethod.sketch, InfluenceMethod.tensorsketch, InfluenceMethod.rapidgrad)


def bytes_needed(cfg: InfluenceConfig, num_rows: int, num_queries: int = 0) -> int:
    """Bytes at the fullest moment of the influence stage, model aside.

    Args: num_rows: training rows. num_queries: rows that are asked about and are none of them.
    """
    every = num_rows + num_queries
    # of exact, factored and repsim the settings and the model's shape decide, not the rows
    numbers = 4 * cfg.k * every if cfg.method in SKETCHED else 0
    numbers *= 1 if cfg.precondition is Precondition.none else 2
    written = PAIR_BYTES * num_rows**2 if not num_queries else 8 * (every**2 + num_rows * num_queries)
    return BASE_BYTES + max(numbers + 8 * every**2, written)


def mapping_bytes_needed(num_rows: int) -> int:
    """Bytes at the fullest moment of the mapping stage. Args: num_rows: training rows, each its own query."""
    return BASE_BYTES + MAPPING_PAIR_BYTES * num_rows**2


def most_rows(available: int, needed: Callable[[int], int]) -> int:
    """The largest number of rows for which `needed` stays within `available` bytes."""
    low, high = 0, math.isqrt(available) + 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= available else (low, middle - 1)
    return low


def no_room(num_rows: int, needed: Callable[[int], int], available: int | None, *, stage: str) -> str:
    """Why that many rows cannot be scored for each other; empty where they can be, or nobody knows what there is."""
    wanted = needed(num_rows)
    if available is None or wanted <= available:
        return ""
    return (
        f"{stage}: need {byte_size(wanted)} of memory for the scores of {num_rows:,} rows for each other, got "
        f"{byte_size(available)}: about {most_rows(available, needed):,} rows fit. {INDEX}; or take fewer rows "
        "(data.*), or more memory"
    )


def worth_saying(num_rows: int, wanted: int, available: int | None) -> str:
    """What is said of a large influence before it begins; empty where it is small."""
    if wanted < WORTH_SAYING:
        return ""
    there = "" if available is None else f", {byte_size(available)} are available"
    return f"influence: the scores of {num_rows:,} rows for each other take {byte_size(wanted)} of memory{there}"
