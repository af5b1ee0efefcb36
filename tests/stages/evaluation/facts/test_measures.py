"""Numbers worked by hand; the KS test against an exact count."""

import itertools
import math

import pytest

from rapidun.stages.answers.extraction import AnswerScore
from rapidun.stages.evaluation.facts.measures import (
    forget_quality,
    log_truth_ratio,
    model_utility,
    probability_of_options,
    truth_ratio_gone,
    truth_ratio_stays,
)


def of(probability: float, num_tokens: int = 4) -> AnswerScore:
    """An answer of which each token has this probability."""
    return AnswerScore(num_tokens * math.log(probability), num_tokens, 0.0, num_tokens, 0)


def test_truth_ratio_by_hand() -> None:
    """Wrong 0.2 and 0.05 (of other lengths), right 0.5: R = sqrt(0.2 * 0.05) / 0.5 = 0.2."""
    ratio = log_truth_ratio(of(0.5), [of(0.2, 3), of(0.05, 9)])
    assert math.exp(ratio) == pytest.approx(0.2)
    assert truth_ratio_gone(ratio) == pytest.approx(0.2)
    assert truth_ratio_stays(ratio) == pytest.approx(0.8)
    # R = 5: as far from 1 where it should be gone, nothing left where it should stay
    other = log_truth_ratio(of(0.02), [of(0.1)])
    assert truth_ratio_gone(other) == pytest.approx(0.2) and truth_ratio_stays(other) == 0
    assert truth_ratio_gone(0.0) == 1
    # an impossible right answer
    assert truth_ratio_gone(math.inf) == 0 and truth_ratio_stays(math.inf) == 0


def test_probability_among_options() -> None:
    assert probability_of_options(of(0.5), [of(0.2), of(0.3)]) == pytest.approx(0.5)
    assert probability_of_options(AnswerScore(-math.inf, 2, 0, 2, 0), [AnswerScore(-math.inf, 2, 0, 2, 0)]) == 0


def exact_ks(xs: list[float], ys: list[float]) -> float:
    """p by all ways to deal the values to the two samples: the share whose statistic is at least the observed one."""

    def statistic(first: list[float], second: list[float]) -> float:
        both = sorted(first + second)
        return max(
            abs(sum(x <= t for x in first) / len(first) - sum(y <= t for y in second) / len(second)) for t in both
        )

    values = xs + ys
    observed = statistic(xs, ys)
    dealt = list(itertools.combinations(range(len(values)), len(xs)))
    hits = sum(
        statistic([values[i] for i in chosen], [values[i] for i in range(len(values)) if i not in chosen])
        >= observed - 1e-12
        for chosen in dealt
    )
    return hits / len(dealt)


def test_forget_quality_is_an_exact_p() -> None:
    ours = {"a": 0.1, "b": 0.2, "c": 0.35, "d": 0.9, "e": 0.4}
    theirs = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8, "e": 0.15}
    expected = exact_ks(list(ours.values()), list(theirs.values()))
    assert forget_quality(ours, theirs) == pytest.approx(expected)
    # any increasing function of R
    logs = [{key: math.log(value) for key, value in found.items()} for found in (ours, theirs)]
    assert forget_quality(*logs) == pytest.approx(expected)
    assert forget_quality(ours, ours) == 1
    with pytest.raises(ValueError, match="of the same rows"):
        forget_quality(ours, {"a": 0.1})


def test_model_utility_needs_all_nine() -> None:
    """Harmonic mean: eight times 0.5 and one 0.25 give 9 / (8 * 2 + 4) = 0.45."""
    measured = {
        "retain": {"probability": 0.25, "rougeL_recall": 0.5, "truth_ratio": 0.5},
        "real_authors": {"probability_of_options": 0.5, "rougeL_recall": 0.5, "truth_ratio": 0.5},
        "world_facts": {"probability_of_options": 0.5, "rougeL_recall": 0.5, "truth_ratio": 0.5},
    }
    assert model_utility(measured) == (pytest.approx(0.45), [])
    assert model_utility(measured | {"retain": {**measured["retain"], "truth_ratio": 0.0}})[0] == 0
    del measured["world_facts"]["truth_ratio"]
    assert model_utility(measured) == (None, ["truth_ratio of world_facts"])
    assert model_utility({"retain": measured["retain"]}) == (None, ["rows of real_authors and world_facts"])
