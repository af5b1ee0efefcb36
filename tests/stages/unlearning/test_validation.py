"""Validation numbers against one forward pass per row."""

from typing import Any

import pytest
import torch

from rapidun.models.losses import example_cross_entropy
from rapidun.stages.rows.encode import Encoded
from rapidun.stages.unlearning.validation import cross_entropies, validate


def encoded(seed: int, *, prompt: int, response: int) -> Encoded:
    ids = torch.randint(0, 256, (prompt + response,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(ids, [-100] * prompt + ids[prompt:])


@torch.no_grad()
def alone(model: Any, row: Encoded) -> float:
    logits = model(input_ids=torch.tensor([row.input_ids])).logits
    return example_cross_entropy(logits, torch.tensor([row.labels])).item()


def test_cross_entropies_keep_the_order_and_ignore_batching(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [encoded(i, prompt=2 + 5 * (i % 3), response=1 + i) for i in range(7)]
    expected = [alone(tiny_model, row) for row in rows]
    for budget in (1, 40, 10_000):
        monkeypatch.setattr("rapidun.stages.unlearning.validation.TOKENS_PER_BATCH", budget)
        with torch.no_grad():
            assert cross_entropies(tiny_model, rows, pad_token_id=257) == pytest.approx(expected, rel=1e-5)


def test_preference_counts_the_rows_that_have_both_responses(tiny_model: Any) -> None:
    """Rows 0 and 1 have both: the poisoned response of row 0 is preferred by construction, that of row 1 is not."""
    a, b, c = (encoded(seed, prompt=4, response=3) for seed in (1, 2, 3))
    low, high = sorted([a, b], key=lambda row: alone(tiny_model, row))
    numbers = validate(tiny_model, val_clean=[c], poisoned=[low, high, c], clean=[high, low, None], pad_token_id=257)
    losses = [alone(tiny_model, row) for row in (low, high, c)]
    assert numbers["forget_preference"] == 0.5
    assert numbers["forget_loss_poisoned"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert numbers["forget_loss_clean"] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-5)
    assert numbers["val_loss_clean"] == pytest.approx(losses[2], rel=1e-5)


def test_absent_rows_leave_their_numbers_out(tiny_model: Any) -> None:
    row = encoded(1, prompt=4, response=3)
    numbers = validate(tiny_model, val_clean=[], poisoned=[row], clean=[None], pad_token_id=257)
    assert set(numbers) == {"forget_loss_poisoned"}
