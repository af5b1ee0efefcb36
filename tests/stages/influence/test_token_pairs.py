"""Pairs that are worth a look: by hand on a 4 x 4 matrix."""

import torch

from rapidun.stages.influence.token_pairs import QueryPairs, strongest_pairs

# rows = training, columns = queries; two forget rows, two retain rows; the diagonal must not count
SCORES = torch.tensor(
    [
        [9.0, 0.1, -0.2, 0.3],
        [0.5, 9.0, 0.4, 0.0],
        [-0.7, 0.2, 9.0, 0.6],
        [0.1, 0.3, 0.1, 9.0],
    ]
)


def test_the_strongest_of_either_sign_for_queries_of_both_groups() -> None:
    # |scores| of others: query 0 -> 0.7, 1 -> 0.3, 2 -> 0.4, 3 -> 0.6
    assert strongest_pairs(SCORES, num_forget=2, num_queries=2) == [QueryPairs(0, [1, 2]), QueryPairs(3, [2])]
    assert strongest_pairs(SCORES, num_forget=2, num_queries=3) == [
        QueryPairs(0, [1, 2]), QueryPairs(1, [3]), QueryPairs(3, [2]),
    ]  # fmt: skip


def test_more_queries_than_rows_take_what_there_is() -> None:
    assert [pair.query for pair in strongest_pairs(SCORES, num_forget=2, num_queries=9)] == [0, 1, 3, 2]


def test_a_query_that_nothing_moves_has_no_pair() -> None:
    assert strongest_pairs(torch.eye(3), num_forget=1, num_queries=3) == []
