"""Selective synaptic dampening against its formulas written out, row by row, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rapidun.config.edits import Fisher, FisherParams, FisherReference
from rapidun.config.unlearning import Objective
from rapidun.stages.unlearning.edits.fisher import chosen_parameters, dampened, fisher

ALPHA, LAMBDA = 1.2, 0.7


def by_hand(
    model: Any, rows: Any, gradient: Any, *, with_forget: bool, alpha: float, constant: float
) -> dict[str, Any]:
    """theta after the edit; a loop over the rows for each importance."""

    def importance(group: list[Any]) -> dict[str, torch.Tensor]:
        sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for row in group:
            for name, g in gradient(model, row).items():
                sums[name] += row.weight * g**2
        return {name: value / sum(row.weight for row in group) for name, value in sums.items()}

    forget = importance(rows.forget)
    other = importance([*rows.forget, *rows.retain] if with_forget else rows.retain)
    after = {}
    for name, p in model.named_parameters():
        value = p.detach().clone()
        for place in (forget[name] > alpha * other[name]).nonzero():
            at = tuple(place.tolist())
            value[at] *= min(1.0, constant * float(other[name][at]) / float(forget[name][at]))
        after[name] = value
    return after


def run(given: Any, model: Any, rows: Any, **settings: Any) -> Any:
    section = Fisher(**{"alpha": ALPHA, "dampening_constant": LAMBDA, **settings})
    return fisher(given(model, rows, objective=Objective.fisher, fisher=section))


@pytest.mark.parametrize("reference", FisherReference)
def test_by_the_formulas(
    model: Any, make_rows: Callable[..., Any], given: Any, gradient_by_hand: Any, reference: FisherReference
) -> None:
    rows = make_rows(forget=(1.0, 0.2, 3.0), retain=(1.0, 1.0, 0.4, 2.0))
    with_forget = reference is FisherReference.all
    wanted = by_hand(model, rows, gradient_by_hand, with_forget=with_forget, alpha=ALPHA, constant=LAMBDA)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    edited = run(given, model, rows, reference=reference)
    changed = total = 0
    for name, parameter in edited.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-10, atol=1e-12)
        changed += int((wanted[name] != start[name]).sum())
        total += parameter.numel()
    assert 0 < changed < total
    summary = edited.changes.summary()
    assert summary["changed_share"] == pytest.approx(changed / total, abs=1e-3)
    norm = sum(float((wanted[name] - start[name]).square().sum()) for name in start) ** 0.5
    assert summary["change_norm"] == pytest.approx(norm, rel=1e-9)
    assert edited.numbers["chosen_share"] >= summary["changed_share"]


def test_rows_of_weight_one_and_zero(model: Any, make_rows: Callable[..., Any], given: Any) -> None:
    """A row of weight 0 is as if it were not there; equal weights are no weights, whatever their scale."""
    results = []
    for forget, retain in (((1.0, 1.0), (1.0,) * 3), ((1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 0.0)), ((7.0,) * 2, (7.0,) * 3)):
        edited = run(given, copy.deepcopy(model), make_rows(forget=forget, retain=retain))
        results.append([p.detach() for p in edited.model.parameters()])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_the_published_alpha_chooses_nothing_in_a_small_d(
    model: Any, make_rows: Callable[..., Any], given: Any
) -> None:
    """I_F / I_D is at most the weight of D over that of F."""
    start = [p.detach().clone() for p in model.parameters()]
    task = given(model, make_rows(), objective=Objective.fisher, fisher=Fisher())
    edited = fisher(task)
    assert all(torch.equal(a, b) for a, b in zip(start, edited.model.parameters(), strict=True))
    assert edited.changes.summary() == {"changed_share": 0.0, "change_norm": 0.0}
    [message] = task.tracker.warnings
    assert "fisher.alpha=10 chooses no weight" in message and "at most 2.5" in message
    assert edited.notes["highest_ratio"] == 2.5


def test_a_weight_by_hand() -> None:
    weight, forget = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.5]), torch.tensor([8.0, 8.0, 1.0, 8.0, 0.0])
    reference = torch.tensor([1.0, 4.0, 1.0, 0.0, 0.0])
    # I_F > 3 I_D: by 8, no, no, with nothing in D, no; then times 2 * I_D / I_F
    found = dampened(weight, forget, reference, alpha=3.0, dampening_constant=2.0)
    assert found.tolist() == [0.5, 2.0, 2.0, 0.0, 0.5]
    # never made larger
    assert dampened(weight, forget, reference, alpha=3.0, dampening_constant=100.0)[0] == 2.0


def test_the_parameters(model: Any) -> None:
    every, linear = (set(chosen_parameters(model, params)) for params in FisherParams)
    assert every == {name for name, _ in model.named_parameters()}
    assert {name for name in every if "_proj" in name} == linear
