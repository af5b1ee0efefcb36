"""Gram matrix to scores, and the pairs that are worth a look."""

import math

import pytest
import torch

from rapidun.config.influence import Score
from rapidun.stages.influence.scores import (
    QueryPairs,
    gradient_norms,
    influence_scores,
    split_blocks,
    strongest_pairs,
)


def test_by_hand():
    """g = (3, 4), (0, 2), (-6, -8), (0, 0): norms 5, 2, 10, 0; <g0, g1> = 8, cosine 0.8; g2 = -2 g0, cosine -1."""
    g = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-6.0, -8.0], [0.0, 0.0]], dtype=torch.float64)
    gram = g @ g.T
    assert gradient_norms(gram).tolist() == [5, 2, 10, 0]
    expected = [[1, 0.8, -1, 0], [0.8, 1, -0.8, 0], [-1, -0.8, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(influence_scores(gram, score=Score.cosine), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(influence_scores(gram, score=Score.dot), gram)


def test_first_letter_is_the_training_set():
    """Two forget rows and one retain row; entry 10 i + j."""
    scores = torch.tensor([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [20.0, 21.0, 22.0]])
    blocks = split_blocks(scores, num_forget=2)
    assert blocks.ff.tolist() == [[0, 1], [10, 11]]
    assert blocks.fr.tolist() == [[2], [12]]
    assert blocks.rf.tolist() == [[20, 21]]
    assert blocks.rr.tolist() == [[22]]


def test_zero_gradients_score_zero():
    assert not influence_scores(torch.zeros(3, 3, dtype=torch.float64), score=Score.cosine).any()


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_tiny_and_huge_norms_neither_vanish_nor_overflow(scale):
    g = scale * torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    cosine = influence_scores(g @ g.T, score=Score.cosine)
    assert math.isclose(cosine[0, 1].item(), math.sqrt(0.5), rel_tol=1e-9)


def test_scale_of_a_row_does_not_change_cosines():
    g = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = g * torch.tensor([[1.0], [7.0], [0.01], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(
        influence_scores(g @ g.T, score=Score.cosine), influence_scores(scaled @ scaled.T, score=Score.cosine)
    )


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
