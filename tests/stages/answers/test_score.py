import copy
import math
from typing import Any

import pytest
import torch

from rapidun.stages.answers.score import ResponseScore, num_prompt_tokens, score_responses
from rapidun.stages.evaluation.metrics import perplexity
from rapidun.stages.rows.encode import Encoded, encode_rows

ROWS = [("a", "", "b"), ("who", "ctx", "a longer answer"), ("hey", "", "no"), ("q" * 30, "", "z" * 20), ("a", "", "c")]


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[Encoded]:
    return encode_rows(tokenizer, ROWS, max_length=64)


def score(model: Any, rows: list[Encoded], tokens_per_batch: int = 100) -> list[ResponseScore]:
    return score_responses(model, rows, pad_token_id=0, tokens_per_batch=tokens_per_batch)


def slow(model: Any, row: Encoded) -> tuple[float, int]:
    """float64 model, one row, one token at a time."""
    double = copy.deepcopy(model).double()
    total, count = 0.0, 0
    for place, label in enumerate(row.labels):
        if label == -100 or place == 0:
            continue
        with torch.no_grad():
            logits = double(input_ids=torch.tensor([row.input_ids[:place]])).logits[0, -1]
        total += float(logits[label] - torch.logsumexp(logits, dim=0))
        count += 1
    return total, count


def test_equals_a_slow_float64_loop(model: Any, rows: list[Encoded]) -> None:
    """Each sum of log p, and the token-weighted perplexity exp(-sum S / sum n) of all rows."""
    expected = [slow(model, row) for row in rows]
    scores = score(model, rows)
    assert [s.num_tokens for s in scores] == [count for _, count in expected] == [2, 16, 3, 21, 2]
    assert [s.log_prob for s in scores] == pytest.approx([total for total, _ in expected], rel=1e-5)
    tokens = sum(count for _, count in expected)
    assert perplexity(scores) == pytest.approx(math.exp(-sum(total for total, _ in expected) / tokens), rel=1e-5)


@pytest.mark.parametrize("tokens_per_batch", [1, 10**6])
def test_the_batch_does_not_matter(model: Any, rows: list[Encoded], tokens_per_batch: int) -> None:
    got = [s.log_prob for s in score(model, rows, tokens_per_batch)]
    assert got == pytest.approx([s.log_prob for s in score(model, rows)], rel=1e-5)


def test_the_order_does_not_matter(model: Any, rows: list[Encoded]) -> None:
    assert score(model, rows[::-1]) == score(model, rows)[::-1]


def test_equal_rows_are_computed_once(model: Any, rows: list[Encoded]) -> None:
    """The same tokens with another share of response are another row."""
    shorter = Encoded(rows[1].input_ids, [-100] * (num_prompt_tokens(rows[1]) + 2) + rows[1].labels[-14:])
    told: list[int] = []
    scores = score_responses(
        model, [*rows, rows[1], shorter], pad_token_id=0, tokens_per_batch=100, on_batch=told.extend
    )
    assert sorted(told) == [0, 1, 2, 3, 4, 6]
    assert scores[5] == scores[1]
    assert scores[6].num_tokens == 14


def test_a_response_without_prompt_loses_its_first_token(model: Any) -> None:
    """Nothing predicts position 0: three tokens, two of them scored."""
    assert score(model, [Encoded([5, 6, 7], [5, 6, 7])])[0].num_tokens == 2
