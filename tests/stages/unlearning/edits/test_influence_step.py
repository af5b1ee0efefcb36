"""The influence step: its direction against an explicit Kronecker solve, its length within the budget."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rapidun.base.errors import ModelError
from rapidun.base.files import write_tensors
from rapidun.config.edits import BudgetOn, InfluenceStep
from rapidun.config.unlearning import Objective
from rapidun.models.curvature import Curvature, curvature_tensors
from rapidun.stages.unlearning.edits.influence_step import direction, influence_step

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.v_proj.weight")


def random_curvature(rows: int, columns: int, *, seed: int) -> tuple[Curvature, np.ndarray, np.ndarray]:
    """A Kronecker-factored matrix G (x) A by its eigenvectors, and the two factors."""
    rng = np.random.default_rng(seed)
    g, a = (m @ m.T / len(m) for m in (rng.normal(size=(rows, rows)), rng.normal(size=(columns, columns))))
    (g_values, g_vectors), (a_values, a_vectors) = np.linalg.eigh(g), np.linalg.eigh(a)
    found = Curvature(*map(torch.from_numpy, (g_vectors, a_vectors, np.outer(g_values, a_values))))
    return found, g, a


def test_one_layer_against_the_kronecker_matrix() -> None:
    """vec(H^-1 G) by numpy: (G (x) A + damping I)^-1 vec(G), row by row as numpy lays a matrix out."""
    curvature, g, a = random_curvature(4, 3, seed=0)
    rng = np.random.default_rng(1)
    forget, retain = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    matrix = np.kron(g, a)
    damped = matrix + 0.3 * np.trace(matrix) / 12 * np.eye(12)
    for ratio in (0.0, 0.25):
        wanted = np.linalg.solve(damped, (forget - ratio * retain).reshape(-1)).reshape(4, 3)
        for turned in (False, True):
            sums = [{"w": torch.from_numpy(m.T.copy() if turned else m)} for m in (forget, retain)]
            found = direction(
                *sums,
                {"w": curvature},
                damping_factor=0.3,
                retain_ratio=ratio,
                transposed=frozenset({"w"} if turned else ()),
            )["w"]
            np.testing.assert_allclose(found.numpy(), wanted.T if turned else wanted, rtol=1e-10)


@pytest.fixture
def curvature(tmp_path: Path, model: Any) -> tuple[Path, dict[str, Curvature]]:
    """A folder as the influence stage fills it, for two of the model's weights."""
    found = {}
    for seed, name in enumerate(NAMES):
        found[name] = random_curvature(*model.get_parameter(name).shape, seed=seed)[0]
    folder = tmp_path / "curvature"
    folder.mkdir()
    write_tensors(folder / "curvature.safetensors", curvature_tensors(found))
    return folder, found


def run(given: Any, model: Any, rows: Any, folder: Path, **settings: Any) -> Any:
    section = InfluenceStep(**settings)
    cfg = {"objective": Objective.influence_step, "influence_step": section}
    return influence_step(given(model, rows, files={"curvature": folder}, **cfg))


@pytest.mark.parametrize("on", BudgetOn)
def test_theta_moves_along_the_direction_as_far_as_the_budget(
    model: Any, make_rows: Callable[..., Any], given: Any, gradient_by_hand: Any, curvature: Any, on: BudgetOn
) -> None:
    folder, curvatures = curvature
    rows = make_rows(forget=(1.0, 0.2, 3.0), retain=(1.0, 0.5, 2.0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted = {}
    for name in NAMES:
        total = sum(row.weight * gradient_by_hand(model, row)[name] for row in rows.forget)
        total = total - 0.1 * sum(row.weight * gradient_by_hand(model, row)[name] for row in rows.retain)
        c = curvatures[name]
        q, p = c.rows.float().double(), c.columns.float().double()
        values = c.eigenvalues.float().double()
        wanted[name] = q @ ((q.T @ total @ p) / (values + 0.1 * values.mean())) @ p.T
    budget = 0.02 if on is BudgetOn.kl else 1.05
    edited = run(given, model, rows, folder, budget=budget, budget_on=on, retain_ratio=0.1)
    eta, damage = edited.numbers["eta"], edited.numbers["damage"]
    least = 0.95 * budget if on is BudgetOn.kl else 1 + 0.95 * 0.05
    assert eta > 0 and least <= damage <= budget
    assert edited.numbers["num_evaluations"] == len(edited.notes["tried"])
    for name, parameter in edited.model.named_parameters():
        # H is kept in float32
        step = eta * wanted[name] if name in NAMES else torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.detach(), start[name] + step, rtol=1e-4, atol=1e-5)
    assert set(edited.changes.by_weight) == set(NAMES)


def test_weights_of_rows(model: Any, make_rows: Callable[..., Any], given: Any, curvature: Any) -> None:
    """Weight 0 as if the row were not there, equal weights as none."""
    results = []
    for weights in ((1.0, 1.0), (1.0, 1.0, 0.0), (4.0, 4.0)):
        edited = run(given, copy.deepcopy(model), make_rows(forget=weights), curvature[0])
        results.append(edited.model.get_parameter(NAMES[0]).detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    # the budget takes up the scale
    torch.testing.assert_close(results[0], results[2], rtol=1e-6, atol=1e-8)


def test_a_zero_direction_is_refused(model: Any, make_rows: Callable[..., Any], given: Any, curvature: Any) -> None:
    with torch.no_grad():
        # nothing behind the embeddings is heard
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    with pytest.raises(ModelError, match="need a direction to step in, got one of norm 0"):
        run(given, model, make_rows(), curvature[0])


def test_settings() -> None:
    def faults(**settings: Any) -> str:
        from rapidun.config.unlearning import UnlearningConfig

        return " ".join(UnlearningConfig(influence_step=InfluenceStep(**settings)).check())

    assert faults() == ""
    assert "influence_step.budget > 0 with budget_on=kl (without damage there is no step)" in faults(budget=0.0)
    assert "influence_step.budget > 1 with budget_on=ppl" in faults(budget=1.0, budget_on=BudgetOn.ppl)
    assert "budget > 0" in faults(budget=float("nan"))
