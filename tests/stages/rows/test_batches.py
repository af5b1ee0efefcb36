import itertools
import random

import pytest

from rapidun.stages.rows.batches import token_budget_batches


def test_worked_by_hand() -> None:
    """Sorted: 1 (i=1), 2 (i=3), 3 (i=0), 9 (i=2). Budget 6: 2 rows x 2 = 4; a third row x 3 = 9 > 6; 9 > 6 alone."""
    assert token_budget_batches([3, 1, 9, 2], max_tokens=6) == [[1, 3], [0], [2]]


def test_max_rows() -> None:
    assert token_budget_batches([1, 1, 1, 1, 1], max_tokens=100, max_rows=2) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("seed", range(5))
def test_every_row_once_within_the_budget_and_greedy(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(0, 40) for _ in range(200)]
    batches = token_budget_batches(lengths, max_tokens=64)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 64
    for batch, following in itertools.pairwise(batches):
        # the next row would not have fitted
        assert (len(batch) + 1) * lengths[following[0]] > 64


def test_no_rows_no_batches() -> None:
    assert token_budget_batches([], max_tokens=1) == []


@pytest.mark.parametrize("arguments", [{"max_tokens": 0}, {"max_tokens": 1, "max_rows": 0}])
def test_bad_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need max_tokens"):
        token_budget_batches([1], **arguments)
