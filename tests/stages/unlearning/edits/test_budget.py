"""The search for a step within a budget, and the damage that it goes by."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rapidun.base.errors import ModelError
from rapidun.config.edits import BudgetOn
from rapidun.models.packed import Packed
from rapidun.stages.unlearning.edits import rows as edit_rows
from rapidun.stages.unlearning.edits.budget import Damage, kl_to_start, longest_step
from rapidun.stages.unlearning.edits.changes import Changes

SEARCH: dict[str, Any] = {
    "spend": 0.95,
    "longest": 1e9,
    "max_evaluations": 40,
    "what": "unlearning.influence_step.budget",
}


@pytest.mark.parametrize("first", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("budget", [1e-3, 0.5])
def test_it_ends_within_the_budget(first: float, budget: float) -> None:
    found = longest_step(lambda eta: eta**2, budget=budget, first=first, **SEARCH)
    assert 0.95 * budget <= found.damage <= budget
    assert found.damage == found.eta**2 and (found.eta, found.damage) in found.tried
    assert len(found.tried) < 25


def test_damage_that_falls_again_and_jumps() -> None:
    def wavy(eta: float) -> float:
        return eta * (1 + 0.9 * math.sin(40 * eta))

    found = longest_step(wavy, budget=0.3, first=1e-3, **SEARCH)
    assert found.damage <= 0.3

    def jump(eta: float) -> float:
        return 0.01 if eta < 1 else math.inf

    found = longest_step(jump, budget=0.3, first=1e-3, **SEARCH)
    # the longest step below the jump: no step spends 0.95 of this budget
    assert found.damage == 0.01 and 0.99 < found.eta < 1


def test_ratios_begin_at_one() -> None:
    found = longest_step(lambda eta: 1 + eta, budget=1.1, first=1.0, none=1.0, **SEARCH)
    assert 0.095 <= found.eta <= 0.1


def test_budgets_out_of_reach() -> None:
    with pytest.raises(ModelError, match=r"need a step within unlearning.influence_step.budget=0.1, got none: even"):
        longest_step(lambda eta: 1.0, budget=0.1, first=1.0, **SEARCH)
    with pytest.raises(
        ModelError, match=r"need a step that spends .*budget=0.1, got none: a step of .* no more than 0 "
    ):
        longest_step(lambda eta: 0.0, budget=0.1, first=1.0, **SEARCH)
    # a step as long as the weights themselves is where it ends
    with pytest.raises(ModelError, match=r"a step of 9 does no more than 0.05 after 3 evaluations"):
        longest_step(lambda eta: min(eta, 0.05), budget=0.1, first=1.0, **{**SEARCH, "longest": 9.0})


@pytest.mark.parametrize("on", BudgetOn)
def test_damage_by_hand(
    model: Any, make_rows: Callable[..., Any], loss_by_hand: Any, on: BudgetOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(retain=(1.0, 5.0, 0.2, 1.0))
    start, before = [], []
    for row in rows.retain:
        start.append(model(input_ids=torch.tensor([row.encoded.input_ids])).logits[0].log_softmax(-1).detach())
        before.append(loss_by_hand(model, row).item())
    measures = []
    for tokens in (2048, 60):
        monkeypatch.setattr(edit_rows, "TOKENS_PER_BATCH", tokens)
        measures.append((tokens, Damage(model, rows, rows.retain, on=on)))
        assert measures[-1][1]() == pytest.approx(0.0 if on is BudgetOn.kl else 1.0, abs=1e-12)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    places = [[t for t, label in enumerate(row.encoded.labels) if t and label != -100] for row in rows.retain]
    if on is BudgetOn.kl:
        terms = []
        for row, known, at in zip(rows.retain, start, places, strict=True):
            now = model(input_ids=torch.tensor([row.encoded.input_ids])).logits[0].log_softmax(-1)
            kl = [(known[t - 1].exp() * (known[t - 1] - now[t - 1])).sum().item() for t in at]
            terms.append(sum(kl) / len(kl))
        wanted = sum(terms) / len(terms)
    else:
        after = [loss_by_hand(model, row).item() for row in rows.retain]
        counts = [len(at) for at in places]
        difference = sum(n * (b - a) for n, a, b in zip(counts, before, after, strict=True)) / sum(counts)
        wanted = math.exp(difference)
    for tokens, damage in measures:
        monkeypatch.setattr(edit_rows, "TOKENS_PER_BATCH", tokens)
        assert damage() == pytest.approx(wanted, rel=1e-10)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert measures[-1][1]() == math.inf


def test_banned_tokens_do_no_damage() -> None:
    """0 log 0 = 0: logits of -inf before and after, as some heads have."""
    start = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    now = torch.tensor([[math.log(3.0), 0.0, -torch.inf]], dtype=torch.float64)
    none = torch.zeros(1, dtype=torch.long)
    (found,) = kl_to_start(start, Packed(now, none, none, 1)).tolist()
    # 1/2 ln(1/2 / 3/4) + 1/2 ln(1/2 / 1/4)
    assert found == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)


def test_shares_are_of_the_weights_that_packed_numbers_stand_for() -> None:
    model = nn.Linear(4, 6)
    weight: Any = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = SimpleNamespace(shape=(6, 4))
    model.weight = weight
    assert Changes.of(model).num_weights == 6 * 4 + 6
