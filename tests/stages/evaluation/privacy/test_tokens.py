"""What is read from a model's own distribution: by hand, token by token in plain Python, and whatever the batch."""

import math
from typing import Any

import pytest
import torch

from rapidun.stages.evaluation.privacy import tokens
from rapidun.stages.evaluation.privacy.tokens import statistics, token_stats
from rapidun.stages.rows.encode import Encoded


def test_by_hand() -> None:
    """p = (1/2, 1/4, 1/4): mu = -(3/2) ln 2, sigma^2 = ln2^2 / 4; the margin of 1/4 is -ln 3."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    found = statistics(logits, torch.tensor([1]))
    two = math.log(2)
    assert found.log_probs.item() == pytest.approx(-2 * two)
    assert found.means.item() == pytest.approx(-1.5 * two)
    assert found.stds.item() == pytest.approx(two / 2)
    assert found.margins.item() == pytest.approx(-math.log(3))


def brute(logits: torch.Tensor, target: int) -> tuple[float, float, float, float]:
    values = [float(v) for v in logits.double()]
    total = math.fsum(math.exp(v) for v in values)
    p = [math.exp(v) / total for v in values]
    mu = math.fsum(q * math.log(q) for q in p)
    variance = math.fsum(q * (math.log(q) - mu) ** 2 for q in p)
    return math.log(p[target]), mu, math.sqrt(variance), math.log(p[target] / (1 - p[target]))


def test_equals_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 33)  # three rows at a time
    generator = torch.Generator().manual_seed(0)
    logits, targets = 3 * torch.randn(8, 11, generator=generator), torch.arange(8)
    found = statistics(logits, targets)
    for row in range(8):
        assert [float(part[row]) for part in found] == pytest.approx(brute(logits[row], row), rel=1e-9)


def test_a_token_that_cannot_come() -> None:
    """It counts nothing in mu and sigma; as the target it is impossible, not a NaN."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, -torch.inf]])
    found = statistics(logits, torch.tensor([0, 2]))
    assert found.means.tolist() == pytest.approx([-math.log(2)] * 2)
    assert found.stds.tolist() == [0.0, 0.0]
    assert found.log_probs.tolist() == [pytest.approx(-math.log(2)), -math.inf]
    assert found.margins.tolist() == [pytest.approx(0.0), -math.inf]


def test_a_sure_token_has_a_finite_margin() -> None:
    """log(1 - p) of p = 1 - 1e-17 is lost where it is taken from p."""
    found = statistics(torch.tensor([[40.0, 0.0]]), torch.tensor([0]))
    assert found.margins.item() == pytest.approx(40.0)


def rows() -> list[Encoded]:
    made = []
    for prompt, response in (([5, 9], [7, 3, 4]), ([6], [8]), ([5, 9, 4, 4], [1, 2, 3, 4, 5, 6])):
        made.append(Encoded(prompt + response, [-100] * len(prompt) + response))
    return made


@pytest.mark.parametrize("budget", [4, 100])
def test_batches_change_nothing(model: Any, tokenizer: Any, budget: int) -> None:
    found = token_stats(model, rows(), pad_token_id=tokenizer.pad_token_id, tokens_per_batch=budget)
    for row, stats in zip(rows(), found, strict=True):
        first = row.labels.count(-100)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        expected = [
            brute(logits[place - 1], row.input_ids[place]) for place in range(first, len(row.input_ids))
        ]  # fmt: skip
        assert len(stats.log_probs) == len(expected)
        for place, one in enumerate(expected):
            assert [float(part[place]) for part in stats] == pytest.approx(one, rel=1e-4, abs=1e-5)
