"""Strongest pairs of rows, and strongest training rows of each query, found by eye in small matrices."""

import numpy as np

from rapidun.report.read import Influence
from rapidun.report.run.pairs import choose_queries, drivers, full_matrix, small_map, top_pairs


def test_drivers_of_a_column() -> None:
    """Column 1: its own 9 is left out; row 2 helps most, row 0 a little, row 3 harms."""
    matrix = np.zeros((4, 4))
    matrix[:, 1] = [0.1, 9.0, 0.5, -0.7]
    (one,) = drivers(matrix, [1], per_end=2)
    assert one.helpful == [(2, 0.5), (0, 0.1)]
    assert one.harmful == [(3, -0.7)]  # the zero of the query itself is no harm


def test_full_matrix_puts_forget_rows_first() -> None:
    blocks = {
        "ff": np.array([[1.0]]),
        "fr": np.array([[2.0, 3.0]]),
        "rf": np.array([[4.0], [5.0]]),
        "rr": np.ones((2, 2)),
    }
    assert full_matrix(Influence(blocks, ["f"], ["a", "b"])).tolist() == [[1, 2, 3], [4, 1, 1], [5, 1, 1]]


def test_queries_are_spread_over_both_groups() -> None:
    assert choose_queries(3, 2) == [0, 1, 2, 3, 4]
    chosen = choose_queries(1000, 500, limit=10)
    assert len(chosen) == 10
    assert chosen == [0, 200, 400, 600, 800, 1000, 1100, 1200, 1300, 1400]
    assert choose_queries(0, 3) == [0, 1, 2]


def test_map_of_many_rows_is_small_and_keeps_the_border() -> None:
    matrix = np.zeros((400, 400))
    matrix[:100, :100] = 1.0
    values, border, limit = small_map(matrix, 100)
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
