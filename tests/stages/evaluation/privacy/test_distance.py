"""Token KL by hand, beside torch's kl_div on full logits, and of whole models, whatever the batch."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rapidun.base.errors import ArtifactError
from rapidun.stages.evaluation.privacy import distance, tokens
from rapidun.stages.evaluation.privacy.distance import mean_kl, row_kl, token_kl
from rapidun.stages.rows.encode import Encoded


def test_by_hand() -> None:
    """KL((3/4, 1/4) || (1/4, 3/4)) = ln 3 / 2; the other way round the same, of itself 0."""
    one, other = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert token_kl(one, other).item() == pytest.approx(math.log(3) / 2)
    assert token_kl(one, one).item() == 0.0


def test_the_retrained_model_stands_first() -> None:
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert token_kl(one, other).item() == pytest.approx(expected)


def test_what_cannot_come() -> None:
    """A token the reference rules out counts nothing; one that only the other model rules out makes it infinite."""
    some, all_ = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
    assert token_kl(some, all_).item() == pytest.approx(math.log(2))
    assert token_kl(all_, some).item() == math.inf
    assert token_kl(some, some).item() == 0.0


def test_beside_kl_div(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 40)
    generator = torch.Generator().manual_seed(0)
    one, other = (3 * torch.randn(9, 17, generator=generator) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        other.double().log_softmax(-1), one.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert token_kl(one, other).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("budget", [4, 100])
def test_of_models(model: Any, tokenizer: Any, budget: int) -> None:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    answers = (([5, 9], [7, 3, 4]), ([6], [8]), ([5, 9, 4, 4], [1, 2, 3, 4, 5, 6]))
    rows = [Encoded(prompt + response, [-100] * len(prompt) + response) for prompt, response in answers]
    found = row_kl(model, other, rows, pad_token_id=tokenizer.pad_token_id, tokens_per_batch=budget)
    for row, (total, count) in zip(rows, found, strict=True):
        first = row.labels.count(-100)
        with torch.no_grad():
            both = [m(input_ids=torch.tensor([row.input_ids])).logits[0, first - 1 : -1] for m in (model, other)]
        expected = torch.nn.functional.kl_div(
            both[1].log_softmax(-1), both[0].log_softmax(-1), log_target=True, reduction="sum"
        )
        assert count == len(row.input_ids) - first
        assert total == pytest.approx(float(expected), rel=1e-3) and total > 0


def test_every_token_counts_the_same() -> None:
    assert mean_kl([(1.0, 1), (0.0, 3)]) == 0.25
    assert mean_kl([(0.0, 0)]) is None and mean_kl([]) is None


def test_other_vocabularies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [SimpleNamespace(logits=torch.zeros(2, 5)), SimpleNamespace(logits=torch.zeros(2, 6))]
    monkeypatch.setattr(distance, "packed_batches", lambda *args, **more: iter([([0], both)]))
    with pytest.raises(ArtifactError, match=r"one vocabulary .* got 5 tokens in the retrained and 6"):
        row_kl(None, None, [], pad_token_id=0, tokens_per_batch=9)
