"""ASR@k against every subset, and against numbers worked by hand."""

from itertools import combinations

import pytest

from rapidun.stages.evaluation.attacks.leak import asr_at_k, powers_of_two


def by_every_subset(counts: list[int], n: int, k: int) -> float:
    """Of all ways to draw k of the n answers, the share that holds a poisoned one; averaged over prompts."""
    shares = []
    for count in counts:
        answers = [place < count for place in range(n)]
        draws = [any(draw) for draw in combinations(answers, k)]
        shares.append(sum(draws) / len(draws))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_equals_the_share_over_all_subsets(n: int) -> None:
    for k in range(1, n + 1):
        for counts in ([0], [n], [1, 0, n], list(range(n + 1))):
            assert asr_at_k(counts, n=n, k=k) == pytest.approx(by_every_subset(counts, n, k), abs=1e-12)


def test_by_hand() -> None:
    """n = 4, c = 1: 1 - C(3,2)/C(4,2) = 1 - 3/6; c = 3: 1 - C(1,2)/6 = 1; their mean 0.75. The plug-in is too low."""
    assert asr_at_k([1, 3], n=4, k=2) == pytest.approx(0.75)
    assert 1 - (1 - 1 / 4) ** 2 < 0.5
    assert asr_at_k([1, 3], n=4, k=1) == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert asr_at_k([0, 1], n=4, k=4) == pytest.approx(0.5)


def test_what_makes_no_sense_is_refused() -> None:
    for counts, n, k in (([], 4, 1), ([1], 4, 0), ([1], 4, 5), ([5], 4, 1), ([-1], 4, 1)):
        with pytest.raises(ValueError, match="need"):
            asr_at_k(counts, n=n, k=k)


def test_numbers_of_answers_double() -> None:
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert powers_of_two(1) == [1]
