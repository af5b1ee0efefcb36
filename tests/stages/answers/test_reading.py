"""What is read together: a prompt once for all that stands behind it, in an order that the tokens alone decide."""

from typing import Any

import pytest
import torch

from rapidun.models.losses import token_log_probs
from rapidun.stages.answers import reading
from rapidun.stages.answers.reading import Ask, asks_of, in_batches, num_tokens, prompt_of, read

LONG, SHORT = (1, 2, 3, 4), (7, 8)
ROWS = [((7, 8, 9), 2), ((1, 2, 3, 4, 5), 4), ((1, 2, 3, 4, 6, 6), 4), ((5, 5, 5, 5, 5, 5), 1)]


def test_asks_by_hand() -> None:
    """Prompts to be continued first, then rows; long ones first."""
    prompts = {SHORT: 0, LONG: 1, (9,): 2}
    together = asks_of(prompts, ROWS, shared=True)
    assert together == [
        Ask(LONG, (ROWS[1], ROWS[2]), 1), Ask(SHORT, (ROWS[0],), 0), Ask((9,), (), 2), Ask((5,), (ROWS[3],)),
    ]  # fmt: skip
    assert [ask.size for ask in together] == [4 + 1 + 2, 3, 1, 6]
    apart = asks_of(prompts, ROWS, shared=False)
    assert apart == [
        Ask(LONG, (), 1), Ask(SHORT, (), 0), Ask((9,), (), 2),
        Ask(LONG, (ROWS[2],)), Ask((5,), (ROWS[3],)), Ask(LONG, (ROWS[1],)), Ask(SHORT, (ROWS[0],)),
    ]  # fmt: skip
    other = dict(reversed(prompts.items()))
    assert asks_of(other, ROWS[::-1], shared=True) == together and asks_of(other, ROWS[::-1], shared=False) == apart


def test_batches_by_hand() -> None:
    """Sizes 7, 3, 1, 6: within 10 tokens end to end, or 14 padded ones."""
    asks = asks_of({SHORT: 0, LONG: 1, (9,): 2}, ROWS, shared=True)
    assert [num_tokens(asks, packed=packed) for packed in (True, False)] == [17, 28]
    packed = in_batches(asks, lambda some: num_tokens(some, packed=True) <= 10)
    padded = in_batches(asks, lambda some: num_tokens(some, packed=False) <= 14)
    assert [[ask.size for ask in batch] for batch in packed] == [[7, 3], [1, 6]]
    assert [[ask.size for ask in batch] for batch in padded] == [[7, 3], [1, 6]]
    assert in_batches(asks, lambda some: False) == [[ask] for ask in asks]


def test_a_response_without_prompt_has_its_first_token_for_one() -> None:
    assert prompt_of(((5, 6, 7), 0)) == (5,) == prompt_of(((5, 6, 7), 1))


@pytest.mark.parametrize("packed", [True, False])
def test_a_pass_gives_what_each_row_gives_alone(model: Any, monkeypatch: Any, packed: bool) -> None:
    """Scores, and the likeliest token behind each prompt."""
    if not packed:
        layout = reading.layout_of(model)._replace(longest=0)
        monkeypatch.setattr("rapidun.models.training.forward.layout_of", lambda model: layout)
    asks = asks_of({SHORT: 0, LONG: 1, (9,): 2}, ROWS, shared=packed)
    found = read(model, asks, pad_token_id=0)
    for ask, token in zip(asks, found.tokens.tolist(), strict=True):
        with torch.no_grad():
            assert token == int(model(input_ids=torch.tensor([ask.prompt])).logits[0, -1].argmax())
    assert found.scores.keys() == set(ROWS)
    for (ids, first), score in found.scores.items():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits
        labels = torch.tensor([[-100] * first + list(ids[first:])])
        assert score.num_tokens == len(ids) - first
        assert score.log_prob == pytest.approx(float(token_log_probs(logits, labels).sum()), rel=1e-5)
