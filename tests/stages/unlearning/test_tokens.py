"""Weights of tokens from their scores: numbers worked by hand, and scores of other tokens refused."""

import math
from pathlib import Path

import pytest

from rapidun.base.errors import ArtifactError
from rapidun.base.files import write_jsonl
from rapidun.config.unlearning import Objective, TokenWeights, UnlearningConfig
from rapidun.stages.rows.encode import Encoded
from rapidun.stages.unlearning.tokens import read_token_scores, token_weights, weights_of

RATIO, INFLUENCE = TokenWeights.likelihood_ratio, TokenWeights.influence


def test_weights_are_the_positive_scores_with_mean_one() -> None:
    """Scores 3, -2, 1, 0: positive parts 3, 0, 1, 0 of 4 together, times 4 tokens."""
    for how in (RATIO, INFLUENCE):
        assert weights_of([3.0, -2.0, 1.0, 0.0], how) == [3.0, 0.0, 1.0, 0.0]


def test_a_ratio_counts_up_to_ten_nats() -> None:
    """30 nats count as 10, beside 5 and 5: 10, 5, 5 of 20, times 3. By influence nothing is cut."""
    assert weights_of([30.0, 5.0, 5.0], RATIO) == pytest.approx([1.5, 0.75, 0.75])
    assert weights_of([30.0, 5.0, 5.0], INFLUENCE) == pytest.approx([2.25, 0.375, 0.375])


@pytest.mark.parametrize("how", [RATIO, INFLUENCE])
def test_weights_are_bounded_and_average_one(how: TokenWeights) -> None:
    scores = [math.sin(7.0 * place) * 12 for place in range(29)]
    weights = weights_of(scores, how)
    assert sum(weights) / 29 == pytest.approx(1.0, abs=1e-12)
    assert all(0 <= weight <= 29 for weight in weights)
    assert all((weight > 0) == (score > 0) for weight, score in zip(weights, scores, strict=True))


def test_tokens_without_a_positive_score_count_the_same() -> None:
    assert weights_of([-1.0, 0.0, None, math.nan], RATIO) == [1.0] * 4
    assert weights_of([2.0, None, math.nan], RATIO) == [3.0, 0.0, 0.0]


ROW = Encoded([5, 6, 7, 8], [-100, -100, 7, 8])


def test_scores_are_matched_by_row_and_token(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    write_jsonl(path, [{"id": "a", "token_ids": [7, 8], "tokens": ["x", "y"], "scores": [1.0, 3.0]}])
    scores = read_token_scores(path)
    assert token_weights([ROW], ["a"], scores, how=RATIO, path=path) == [[0.5, 1.5]]
    with pytest.raises(ArtifactError, match="got none"):
        token_weights([ROW], ["b"], scores, how=RATIO, path=path)
    with pytest.raises(ArtifactError, match="scores of other tokens"):
        token_weights([Encoded([5, 6, 7, 9], [-100, -100, 7, 9])], ["a"], scores, how=RATIO, path=path)
    write_jsonl(path, [{"id": "a", "token_ids": [7, 8], "tokens": ["x", "y"], "scores": [1.0]}])
    with pytest.raises(ArtifactError, match="of one length"):
        read_token_scores(path)


@pytest.mark.parametrize("objective", Objective)
def test_objectives_without_an_ascent_on_the_poisoned_response_refuse(objective: Objective) -> None:
    faults = UnlearningConfig(objective=objective, token_weights=RATIO).check()
    takes = objective in (Objective.rapidun, Objective.ga, Objective.graddiff)
    assert bool(faults) is not takes
    assert takes or f"token_weights=none with objective={objective.name} (rapidun, ga, graddiff take them)" in faults[0]
