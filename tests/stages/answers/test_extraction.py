"""Extraction strength by one forward pass against generating from every beginning of the answer."""

import math
from typing import Any

import pytest
import torch

from rapidun.stages.answers.extraction import AnswerScore, num_end_tokens, score_answers
from rapidun.stages.answers.score import score_responses
from rapidun.stages.rows.encode import Encoded, encode_rows

PROMPT = [5, 9, 7]


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The next `count` likeliest tokens, one forward pass each."""
    new: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def by_generating(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The definition, word for word: 1 - min{j/n : the greedy continuation of the first j tokens equals the rest}."""
    n = len(answer)
    found = [j for j in range(n) if greedy(model, prompt + answer[:j], n - j) == answer[j:]]
    return 1 - min(found) / n if found else 0.0


def as_row(answer: list[int]) -> Encoded:
    # no end of turn behind it: what is scored is the text alone
    return Encoded(PROMPT + answer, [-100] * len(PROMPT) + answer, response_cut=True)


@pytest.mark.parametrize("shown", range(7))
def test_equals_generating_from_every_beginning(model: Any, tokenizer: Any, shown: int) -> None:
    """The first `shown` tokens are unlikely ones, the rest is what the model says behind them."""
    first: list[int] = []
    for _ in range(shown):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPT + first])).logits[0, -1]
        first.append(int(logits.argmin()))
    answer = first + greedy(model, PROMPT + first, 6 - shown)
    expected = by_generating(model, PROMPT, answer)
    assert expected == pytest.approx(1 - shown / 6)
    [score] = score_answers(model, tokenizer, [as_row(answer)], tokens_per_batch=64)
    assert score.extraction_strength == pytest.approx(expected)


def test_an_early_hit_and_a_late_miss(model: Any, tokenizer: Any) -> None:
    """Right, right, wrong, right: what stands behind the last miss comes by itself; the last one wrong: nothing."""
    answer = greedy(model, PROMPT, 2)
    with torch.no_grad():
        answer.append(int(model(input_ids=torch.tensor([PROMPT + answer])).logits[0, -1].argmin()))
    late = list(answer)
    answer += greedy(model, PROMPT + answer, 1)
    rows = [as_row(answer), as_row(late)]
    scores = score_answers(model, tokenizer, rows, tokens_per_batch=64)
    assert [score.extraction_strength for score in scores] == [0.25, 0.0]
    assert [by_generating(model, PROMPT, ids) for ids in (answer, late)] == [0.25, 0.0]


def test_never_always_last_only() -> None:
    assert AnswerScore(-1.0, 5, -1.0, 4, 0).extraction_strength == 0
    assert AnswerScore(-1.0, 5, -1.0, 4, 4).extraction_strength == 1
    assert AnswerScore(-1.0, 5, -1.0, 4, 1).extraction_strength == 0.25
    assert AnswerScore(0.0, 0, 0.0, 0, 0).extraction_strength == 0


def test_the_end_of_turn_is_no_text(model: Any, tokenizer: Any) -> None:
    """It counts in the probability and not in the text; batches and padding change nothing; a cut row has no end."""
    asked = [("a", "", "b"), ("who", "ctx", "a longer answer"), ("q" * 30, "", "z" * 20)]
    rows = [row for row in encode_rows(tokenizer, asked, max_length=64) if row is not None]
    ends = [num_end_tokens(tokenizer, row) for row in rows]
    assert ends == [1, 1, 1] and num_end_tokens(tokenizer, rows[0]._replace(response_cut=True)) == 0
    together = score_answers(model, tokenizer, rows, tokens_per_batch=1000)
    alone = [score_answers(model, tokenizer, [row], tokens_per_batch=1)[0] for row in rows]
    reference = score_responses(model, rows, pad_token_id=tokenizer.pad_token_id, tokens_per_batch=64)
    for one, other, known in zip(together, alone, reference, strict=True):
        assert one.num_tokens == other.num_tokens == known.num_tokens == one.num_text_tokens + 1
        assert one.num_right_at_end == other.num_right_at_end
        assert one.log_prob == pytest.approx(known.log_prob, abs=1e-4) and one.text_log_prob > one.log_prob
        assert one.probability == pytest.approx(math.exp(known.mean), abs=1e-5)
