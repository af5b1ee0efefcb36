"""The expected best of m out of N trials: closed form against every subset."""

import itertools
import random
import statistics

import pytest

from rapidun.report.statistics import expected_best


def test_by_hand() -> None:
    """Of 1, 2, 4 the pairs are 12, 14, 24: smallest 1, 1, 2, mean 4/3; largest 2, 4, 4, mean 10/3."""
    assert expected_best([4.0, 1.0, 2.0], num_trials=3, m=2, sign=-1) == (pytest.approx(4 / 3), 0.0)
    assert expected_best([4.0, 1.0, 2.0], num_trials=3, m=2, sign=1) == (pytest.approx(10 / 3), 0.0)
    assert expected_best([4.0, 1.0, 2.0], num_trials=3, m=1, sign=-1) == (pytest.approx(7 / 3), 0.0)
    assert expected_best([4.0, 1.0, 2.0], num_trials=3, m=3, sign=-1) == (1.0, 0.0)


def test_trials_that_may_not_be_chosen_by_hand() -> None:
    """a = 1 and b = 3 may be chosen, c and d not. Of the 6 pairs, cd has none; ab ac ad give 1, bc bd give 3."""
    expected, none = expected_best([1.0, 3.0], num_trials=4, m=2, sign=-1)
    assert (expected, none) == (pytest.approx((3 * 1 + 2 * 3) / 5), pytest.approx(1 / 6))
    assert expected_best([], num_trials=4, m=2, sign=-1) == (None, 1.0)


def test_equal_values_give_exactly_that_value() -> None:
    assert expected_best([0.1] * 7, num_trials=9, m=3, sign=-1)[0] == 0.1


@pytest.mark.parametrize("sign", [-1, 1])
def test_is_the_mean_over_all_subsets(sign: int) -> None:
    draw = random.Random(sign)
    for num_trials in range(1, 8):
        # ties among them
        values = [draw.choice([0.0, 0.1, 0.2, 0.5, 3.0]) for _ in range(draw.randint(0, num_trials))]
        trials = [*values, *[None] * (num_trials - len(values))]
        for m in range(1, num_trials + 1):
            subsets = [[one for one in subset if one is not None] for subset in itertools.combinations(trials, m)]
            best = [min(subset) if sign < 0 else max(subset) for subset in subsets if subset]
            expected, none = expected_best(values, num_trials=num_trials, m=m, sign=sign)
            assert none == pytest.approx(sum(not subset for subset in subsets) / len(subsets))
            assert expected == (pytest.approx(statistics.fmean(best)) if best else None)


@pytest.mark.parametrize(("num_trials", "m", "values"), [(3, 4, [1.0]), (3, 0, [1.0]), (1, 1, [1.0, 2.0])])
def test_more_than_there_are_is_refused(num_trials: int, m: int, values: list[float]) -> None:
    with pytest.raises(ValueError, match="need 1 <= m <= num_trials"):
        expected_best(values, num_trials=num_trials, m=m, sign=-1)
