"""The strongest pairs of a small matrix, found by eye."""

import numpy as np

from rapidun.report.read import Influence
from rapidun.report.run.old_pairs import top_pairs


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
