"""Ranks and their fusion: by hand, beside a slow way, and what must not matter."""

import numpy as np
import pytest

from rapidun.config.trace import Signal
from rapidun.stages.influence.trace.agreement import OVERALL, C, average_ranks, combined, rank_rows


def test_every_signal_has_an_overall_score() -> None:
    assert set(OVERALL) == set(Signal)


def test_ranks_by_hand() -> None:
    """5, 7, 5, 1: 7 is first, the two 5 share places 2 and 3, 1 is fourth."""
    assert average_ranks(np.array([5.0, 7.0, 5.0, 1.0])).tolist() == [2.5, 1, 2.5, 4]


def test_agreement_by_hand() -> None:
    """Two signals, one query. Row 0 is first and third, row 1 second and first, row 2 third and second."""
    scores = {
        Signal.repsim: np.array([[3.0], [2.0], [1.0]], dtype=np.float32),
        Signal.bm25: np.array([[0.0], [9.0], [5.0]], dtype=np.float32),
    }
    ranked = rank_rows(scores)
    places = [(1, 3), (2, 1), (3, 2)]
    assert ranked.agreement == pytest.approx([sum(1 / (C + place) for place in pair) for pair in places])
    assert ranked.order.tolist() == [1, 0, 2]
    assert ranked.ranks[Signal.bm25].tolist() == [3, 1, 2]


def test_agreement_is_that_of_a_slow_way() -> None:
    rng = np.random.default_rng(0)
    scores = {signal: rng.integers(0, 9, (20, 3)).astype(np.float32) for signal in Signal}
    slow = np.zeros(20)
    for values in scores.values():
        for query in range(3):
            column = values[:, query].tolist()
            for row, value in enumerate(column):
                above = sum(other > value for other in column)
                equal = sum(other == value for other in column)
                slow[row] += 1 / (C + above + (equal + 1) / 2)
    assert rank_rows(scores).agreement == pytest.approx(slow)


def test_one_signal_ranks_by_its_own_score_and_gradients_by_their_best_query() -> None:
    """Row 1 has the best mean, row 0 the best single query."""
    values = np.array([[5.0, -5.0], [2.0, 2.0], [0.0, 0.0]], dtype=np.float32)
    assert rank_rows({Signal.repsim: values}).order.tolist() == [1, 0, 2]
    assert rank_rows({Signal.gradients: values}).order.tolist() == [0, 1, 2]
    assert rank_rows({Signal.gradients: values}).best_query.tolist()[:2] == [0, 1]


def test_neither_the_order_of_rows_nor_that_of_queries_matters() -> None:
    rng = np.random.default_rng(1)
    scores = {signal: rng.standard_normal((30, 4)).astype(np.float32) for signal in Signal}
    rows, queries = rng.permutation(30), rng.permutation(4)
    once, again = rank_rows(scores), rank_rows({signal: values[rows][:, queries] for signal, values in scores.items()})
    assert rows[again.order].tolist() == once.order.tolist()
    assert combined(again) == pytest.approx(combined(once)[rows])


def test_what_is_no_number_is_refused_with_its_place() -> None:
    scores = np.zeros((3, 2), dtype=np.float32)
    scores[2, 1] = np.nan
    with pytest.raises(ArithmeticError, match="bm25: got a score of nan for row 2, query 1"):
        rank_rows({Signal.bm25: scores})
    with pytest.raises(ValueError, match="one shape"):
        rank_rows({Signal.bm25: scores, Signal.repsim: scores[:2]})


def test_a_signal_that_tells_nothing_moves_nothing() -> None:
    values = np.array([[3.0], [1.0], [2.0]], dtype=np.float32)
    flat = np.ones((3, 1), dtype=np.float32)
    both = rank_rows({Signal.repsim: values, Signal.bm25: flat})
    assert both.order.tolist() == [0, 2, 1]
    assert np.isfinite(combined(both)).all()
