"""Which columns of a matrix of scores the queries are."""

from typing import NamedTuple


class Columns(NamedTuple):
    """The columns of the queries, by group."""

    forget: list[int]
    retain: list[int]
    # for each forget query the column to be taken off it, the same query without its trigger; None = nothing is
    forget_less: list[int] | None = None
