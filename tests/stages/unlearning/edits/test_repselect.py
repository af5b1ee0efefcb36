"""RepSelect: the collapse of directions against numpy, one round against a slow one written out."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rapidun.config.edits import Repselect
from rapidun.config.parts import LoraSettings
from rapidun.config.unlearning import Objective
from rapidun.models.adapters import add_lora
from rapidun.models.rng import permutation
from rapidun.stages.unlearning.edits.repselect import ORDER_STREAM, filtered, repselect

LORA = LoraSettings(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["up_proj", "down_proj"])
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.1, "budget": None, "num_components": 3, "lora_learning_rate": 0.2, "rows_per_step": 3,
    "lora": LORA,
}  # fmt: skip


def collapsed(w: np.ndarray, k: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    u, s, v = u[:, :k], s[:k], vt[:k].T
    shrink = np.diag(1 - s[-1] / s)
    return (np.eye(len(w)) - u @ shrink @ u.T) @ w @ (np.eye(w.shape[1]) - v @ shrink @ v.T)


def test_the_collapse() -> None:
    w = np.random.default_rng(0).normal(size=(6, 9))
    for k in (1, 3, 6):
        found, used = filtered(torch.from_numpy(w), k)
        assert used == k
        np.testing.assert_allclose(found.numpy(), collapsed(w, k), atol=1e-12)
    # one direction alone is its own smallest: nothing is taken away
    np.testing.assert_allclose(filtered(torch.from_numpy(w), 1)[0].numpy(), w, atol=1e-12)
    # the k largest are divided by S / S_min on both sides, the others are as they were
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    values = np.diag(u.T @ filtered(torch.from_numpy(w), 3)[0].numpy() @ vt.T)
    np.testing.assert_allclose(values, [*(s[2] ** 2 / s[:3]), *s[3:]], atol=1e-12)


def test_directions_that_are_not_there_do_not_count() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 9))
    found, used = filtered(torch.from_numpy(w), 5)
    assert used == 2
    np.testing.assert_allclose(found.numpy(), collapsed(w, 2), atol=1e-12)
    assert filtered(torch.zeros(3, 4), 2)[1] == 0


def run(given: Any, model: Any, rows: Any, **settings: Any) -> Any:
    section = Repselect(**{**SETTINGS, **settings})
    return repselect(given(model, rows, objective=Objective.repselect, repselect=section))


def slow_round(model: Any, rows: Any, loss: Any, *, seed: int, part: int) -> None:
    """Steps 1 to 4, each row alone, in place."""
    adapted = add_lora(model, LORA, seed=seed + part, section="x")
    factors = [p for name, p in adapted.named_parameters() if "lora_" in name]
    order = permutation(len(rows.forget), seed=seed, stream=ORDER_STREAM, part=part)
    for start in range(0, len(order), 3):
        chosen = [rows.forget[place] for place in order[start : start + 3]]
        total = sum(row.weight * loss(adapted, row) for row in chosen) / len(chosen)
        gradients = torch.autograd.grad(total, factors)
        with torch.no_grad():
            for factor, gradient in zip(factors, gradients, strict=True):
                factor -= 0.2 * gradient
    weights = {name: p for name, p in adapted.named_parameters() if "base_layer" in name}
    for parameter in weights.values():
        parameter.requires_grad_(True)
    forgotten = sum(-row.weight * loss(adapted, row) for row in rows.forget)
    gradients = torch.autograd.grad(forgotten, list(weights.values()))
    adapted.unload()
    with torch.no_grad():
        for parameter, gradient in zip(weights.values(), gradients, strict=True):
            parameter -= 0.1 * torch.from_numpy(collapsed(gradient.numpy(), 3))
            parameter.requires_grad_(False)


@pytest.mark.parametrize("rounds", [1, 2])
def test_against_a_slow_one(
    model: Any, make_rows: Callable[..., Any], given: Any, loss_by_hand: Any, rounds: int
) -> None:
    rows = make_rows(forget=(1.0, 0.2, 3.0, 1.0))
    slow, start = copy.deepcopy(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    for part in range(rounds):
        slow_round(slow, rows, loss_by_hand, seed=5, part=part)
    edited = run(given, model, rows, rounds=rounds)
    wanted = dict(slow.named_parameters())
    moved = set()
    for name, parameter in edited.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name].detach(), rtol=1e-9, atol=1e-10)
        if not torch.equal(parameter, start[name]):
            moved.add(name)
    assert moved == set(edited.changes.by_weight) == {
        f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (0, 1) for name in ("up", "down")
    }  # fmt: skip
    norm = sum(float((wanted[name] - start[name]).square().sum()) for name in moved) ** 0.5
    # what changed is told against the start, not against the round before
    assert edited.changes.summary()["change_norm"] == pytest.approx(norm, rel=1e-8)
    assert not any("lora" in name for name, _ in edited.model.named_modules())


def test_weights_of_rows_and_the_seed(model: Any, make_rows: Callable[..., Any], given: Any) -> None:
    def weight(forget: Any, **settings: Any) -> Any:
        edited = run(given, copy.deepcopy(model), make_rows(forget=forget), **settings)
        return edited.model.model.layers[0].mlp.up_proj.weight.detach()

    first = weight((1.0, 1.0))
    assert torch.equal(weight((1.0, 1.0)), first)
    assert torch.equal(weight((1.0, 1.0, 0.0)), first)
    assert not torch.equal(weight((2.0, 1.0)), first)
    # without an adversary the gradients are the model's own
    assert not torch.equal(weight((1.0, 1.0), lora_learning_rate=0.0), first)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_budget_in_the_place_of_a_rate(model: Any, make_rows: Callable[..., Any], given: Any, rounds: int) -> None:
    edited = run(given, model, make_rows(), budget=0.01, rounds=rounds)
    spent = [entry["damage"] for entry in edited.notes["rounds"]]
    assert len(spent) == rounds and sorted(spent) == spent
    assert 0.009 <= edited.numbers["damage"] <= 0.01
    if rounds == 2:
        assert 0.0045 <= spent[0] <= 0.005
