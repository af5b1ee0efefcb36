"""Gradients that are handed on: those of autograd, whatever the batches; the model is as before afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rapidun.base.errors import ModelError
from rapidun.stages.unlearning.edits import rows as edit_rows
from rapidun.stages.unlearning.edits.gradients import mean_losses, summed_gradients


def test_sums_are_those_of_the_rows_one_by_one(
    model: Any, make_rows: Callable[..., Any], gradient_by_hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(forget=(1.0, 0.3, 2.5, 1.0))
    parameters = dict(model.named_parameters())
    by_hand = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in rows.forget:
        for name, gradient in gradient_by_hand(model, row).items():
            by_hand[name] += row.weight * gradient
    flags = [p.requires_grad for p in model.parameters()]
    for tokens, padded in ((2048, True), (90, True), (2048, False)):
        monkeypatch.setattr(edit_rows, "TOKENS_PER_BATCH", tokens)
        split = edit_rows.EditRows(rows.forget, rows.retain, rows.pad_token_id, padded)
        sums = summed_gradients(model, parameters, split, rows.forget)
        # the tied head and embedding are one weight
        assert set(sums) == set(by_hand) and "lm_head.weight" not in sums
        for name, value in sums.items():
            assert value.dtype is torch.float64
            torch.testing.assert_close(value, by_hand[name], rtol=1e-10, atol=1e-10)
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags


def test_some_parameters_alone(model: Any, make_rows: Callable[..., Any]) -> None:
    rows = make_rows()
    every = summed_gradients(model, dict(model.named_parameters()), rows, rows.forget)
    name = "model.layers.1.mlp.up_proj.weight"
    some = summed_gradients(model, {name: model.get_parameter(name)}, rows, rows.forget)
    assert list(some) == [name]
    torch.testing.assert_close(some[name], every[name], rtol=1e-12, atol=1e-12)


def test_float16_is_scaled_and_bfloat16_summed_in_float32(model: Any, make_rows: Callable[..., Any]) -> None:
    rows, name = make_rows(), "model.layers.0.mlp.down_proj.weight"
    exact = summed_gradients(model, {name: model.get_parameter(name)}, rows, rows.forget)[name]
    for dtype, within in ((torch.float16, 0.01), (torch.bfloat16, 0.1)):
        half = model.to(dtype)
        found = summed_gradients(half, {name: half.get_parameter(name)}, rows, rows.forget)[name]
        assert found.dtype is torch.float32
        assert float((found - exact).norm() / exact.norm()) < within
        model.double()


def test_a_loss_that_is_no_number_names_its_row(model: Any, make_rows: Callable[..., Any]) -> None:
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    rows = make_rows()
    with pytest.raises(ModelError, match=r"need a finite loss for every row, got nan for row f\d"):
        summed_gradients(model, {"w": model.model.norm.weight}, rows, rows.forget)


def test_mean_losses(model: Any, make_rows: Callable[..., Any], loss_by_hand: Any) -> None:
    rows = make_rows(forget=(0.5, 2.0, 1.0))
    by_hand = [loss_by_hand(model, row).item() for row in rows.forget]
    assert mean_losses(model, rows, rows.forget) == pytest.approx(sum(by_hand) / 3, rel=1e-12)
