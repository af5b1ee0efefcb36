"""Strongest pairs of rows, and strongest training rows of each query, found by eye in small matrices."""

from typing import Any

import numpy as np
import pytest

from rapidun.report.read import Influence
from rapidun.report.run import tiles
from rapidun.report.run.pairs import choose_queries, drivers, small_map, top_pairs


def blocks_of(matrix: Any, num_forget: int) -> Influence:
    ends = {"f": slice(0, num_forget), "r": slice(num_forget, None)}
    blocks = {f"{row}{column}": matrix[ends[row], ends[column]] for row in "fr" for column in "fr"}
    ids = [str(number) for number in range(len(matrix))]
    return Influence(blocks, ids[:num_forget], ids[num_forget:])


def test_drivers_of_a_column() -> None:
    """Column 1: its own 9 is left out; row 2 helps most, row 0 a little, row 3 harms; whatever group it is in."""
    matrix = np.zeros((4, 4))
    matrix[:, 1] = [0.1, 9.0, 0.5, -0.7]
    for num_forget in (1, 2, 3):
        (one,) = drivers(blocks_of(matrix, num_forget), [1], per_end=2)
        assert one.helpful == [(2, 0.5), (0, 0.1)]
        assert one.harmful == [(3, -0.7)]  # the zero of the query itself is no harm


def test_queries_are_spread_over_both_groups() -> None:
    assert choose_queries(3, 2) == [0, 1, 2, 3, 4]
    chosen = choose_queries(1000, 500, limit=10)
    assert len(chosen) == 10
    assert chosen == [0, 200, 400, 600, 800, 1000, 1100, 1200, 1300, 1400]
    assert choose_queries(0, 3) == [0, 1, 2]


def test_map_of_many_rows_is_small_and_keeps_the_border() -> None:
    matrix = np.zeros((400, 400))
    matrix[:100, :100] = 1.0
    values, border, limit = small_map(blocks_of(matrix, 100))
    assert (len(values), len(values[0]), border, limit) == (64, 64, 16, 1.0)
    assert [sum(row) for row in values] == [16.0] * 16 + [0.0] * 48


def test_top_pairs() -> None:
    """FF is symmetric with a diagonal of ones, which do not count; each of its pairs counts once."""
    blocks = {
        "ff": np.array([[1.0, 0.5, -0.2], [0.5, 1.0, 0.1], [-0.2, 0.1, 1.0]]),
        "fr": np.array([[0.3], [-0.4], [0.0]]),
        "rf": np.array([[0.3, -0.4, 0.0]]),
        "rr": np.array([[1.0]]),
    }
    pairs = top_pairs(Influence(blocks, ["a", "b", "c"], ["x"]), per_end=1)
    assert [(p.block, p.train, p.query, p.score) for p in pairs] == [
        ("ff", "a", "b", 0.5),
        ("ff", "a", "c", -0.2),
        ("fr", "a", "x", 0.3),
        ("fr", "b", "x", -0.4),
        ("rf", "x", "a", 0.3),
        ("rf", "x", "b", -0.4),
    ]


def test_small_blocks_list_each_pair_once() -> None:
    blocks = {"fr": np.array([[0.3, 0.2]])}
    assert len(top_pairs(Influence(blocks, ["a"], ["x", "y"]), per_end=5)) == 2


def test_pairs_of_queries_that_are_other_rows() -> None:
    """Row b is its own query and left out there; names of columns are those of the queries."""
    blocks = {
        "ff": np.array([[1.0, 2.0, 3.0], [4.0, 9.0, -5.0]]),
        "fr": np.array([[0.5], [0.25]]),
        "rf": np.array([[0.1, 0.2, 0.3]]),
        "rr": np.array([[7.0]]),
    }
    influence = Influence(blocks, ["a", "b"], ["x"], (["q", "b", "p"], ["y"]))
    pairs = top_pairs(influence, per_end=1)
    found = [(pair.block, pair.train, pair.query, pair.score) for pair in pairs]
    assert found == [
        ("ff", "b", "q", 4.0), ("ff", "b", "p", -5.0), ("fr", "a", "y", 0.5), ("fr", "b", "y", 0.25),
        ("rf", "x", "p", 0.3), ("rf", "x", "q", 0.1), ("rr", "x", "y", 7.0),
    ]  # fmt: skip


@pytest.mark.parametrize("numbers", [1, 7, 1 << 22])
def test_pairs_a_slice_at_a_time_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """With many ties, so that their order counts: as sorted at once, by score, then place."""
    monkeypatch.setattr(tiles, "SLICE_NUMBERS", numbers)
    matrix = np.random.default_rng(0).integers(-2, 3, size=(9, 9)).astype(np.float32)
    found = top_pairs(blocks_of(matrix, 4), per_end=3)
    expected = []
    for block, rows, columns in (("ff", 0, 0), ("fr", 0, 4), ("rf", 4, 0), ("rr", 4, 4)):
        size = {0: 4, 4: 5}
        places = [
            (row, column) for row in range(size[rows]) for column in range(size[columns])
            if rows != columns or column > row
        ]  # fmt: skip
        ordered = sorted(places, key=lambda place: -matrix[rows + place[0], columns + place[1]])
        expected += [
            (block, str(rows + row), str(columns + column)) for row, column in dict.fromkeys(ordered[:3] + ordered[-3:])
        ]
    assert [(one.block, one.train, one.query) for one in found] == expected
