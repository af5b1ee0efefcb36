"""One Newton-like step away from F: what influence functions say that leaving F out would have changed.

    theta + eta H^-1 sum_{i in F} w_i grad l_i - eta' H^-1 sum_{j in R} w_j grad l_j          eta' = retain_ratio * eta

H is the Fisher matrix of R in Kronecker factors (K-FAC, or EK-FAC), damped weight by weight; it is fitted by the
influence stage (rapidun/stages/influence/retain_curvature.py) on each row's summed log-likelihood, so that its scale,
which eta takes up, is not that of the mean l_i. Weights of linear layers only; the others stay as they are.

First order would fix eta (1 / number of training rows, up to that scale). It is too small a step for rows that were
learnt in many epochs, and no bound on what a longer one destroys: so eta is the longest step, found by bisection, whose
damage to rows that are to be kept stays within a stated budget. eta is a number of this model and these sums, not
comparable between runs; the damage is.

Sources: Koh and Liang 2017 (arXiv 1703.04730), equation 1; Ding et al. 2024, LLMEraser (arXiv 2412.00383), which takes
the same step on an adapter's weights with an iterative solver; Grosse et al. 2023 (arXiv 2308.03296) for the damping.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rapidun.base.errors import DataError, ModelError
from rapidun.config.edits import BudgetOn, BudgetRows
from rapidun.models.curvature import Curvature, read_curvatures
from rapidun.models.rng import permutation
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import read_records
from rapidun.stages.unlearning.edits.base import Edited, Given
from rapidun.stages.unlearning.edits.budget import FIRST, LONGEST, Damage, longest_step, norm
from rapidun.stages.unlearning.edits.changes import Changes
from rapidun.stages.unlearning.edits.gradients import summed_gradients
from rapidun.stages.unlearning.edits.rows import WeightedRow

BUDGET_STREAM = 11


def direction(
    forget: Mapping[str, Tensor],
    retain: Mapping[str, Tensor] | None,
    curvatures: Mapping[str, Curvature],
    *,
    damping_factor: float,
    retain_ratio: float = 0.0,
    transposed: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """H^-1 (sum_F w grad l - retain_ratio sum_R w grad l), weight by weight.

    Args: forget, retain: the sums of the gradients. transposed: weights that are stored as [in, out] (GPT-2's Conv1D).
    """
    found = {}
    for name, gradient in forget.items():
        if retain is not None and retain_ratio:
            gradient = gradient - retain_ratio * retain[name]
        curvature = Curvature(*(part.to(gradient.device) for part in curvatures[name]))
        inverse = curvature.inverse(damping_factor)
        turned = name in transposed
        solved = curvature.solve(gradient.T if turned else gradient, inverse)
        found[name] = (solved.T if turned else solved).to(gradient.dtype)
    return found


def influence_step(given: Given) -> Edited:
    """Change the model's linear weights in place, by the longest step within the budget.

    Cost: a forward and backward pass of F (and of R, with retain_ratio); one or two of R for H, kept in the store; a
    forward pass of the budget's rows for each step that is tried. Memory: two copies of the tracked weights, H. Raises:
    ModelError for a budget that cannot be met or spent, and for gradients that are zero.
    """
    cfg, model, rows, tracker = given.cfg.influence_step, given.model, given.rows, given.tracker
    curvatures = _read(given)
    parameters = {name: model.get_parameter(name) for name in curvatures}
    forget = summed_gradients(
        model, parameters, rows, rows.forget, report=lambda done, total: tracker.progress(done, total, "forget rows")
    )
    retain = None
    if cfg.retain_ratio:
        retain = summed_gradients(
            model,
            parameters,
            rows,
            rows.retain,
            report=lambda done, total: tracker.progress(done, total, "retain rows"),
        )
    step = direction(
        forget,
        retain,
        curvatures,
        damping_factor=cfg.damping_factor,
        retain_ratio=cfg.retain_ratio,
        transposed=frozenset(name for name in parameters if _is_transposed(model, name)),
    )
    del forget, retain, curvatures
    length = norm(step)
    if not (math.isfinite(length) and length > 0):
        raise ModelError(
            f"unlearning: need a direction to step in, got one of norm {length:g}. Change "
            "unlearning.influence_step.params, or pass a larger unlearning.influence_step.damping_factor"
        )
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    damage = Damage(model, rows, _budget_rows(given), on=cfg.budget_on)

    @torch.no_grad()
    def move(eta: float) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(start[name].to(step[name].dtype) + eta * step[name])

    def damage_at(eta: float) -> float:
        move(eta)
        found = damage()
        tracker.note(f"unlearning: a step of eta {eta:.3g}: {cfg.budget_on.name} {found:.4g} of {cfg.budget:g}")
        return found

    found = longest_step(
        damage_at,
        budget=cfg.budget,
        spend=cfg.spend,
        first=FIRST * norm(start) / length,
        longest=LONGEST * norm(start) / length,
        none=0.0 if cfg.budget_on is BudgetOn.kl else 1.0,
        max_evaluations=cfg.max_evaluations,
        what="unlearning.influence_step.budget",
    )
    changes = Changes.of(model)
    move(0.0)
    for name, parameter in parameters.items():
        changes.set(name, parameter, start[name].to(step[name].dtype) + found.eta * step[name])
    return Edited(
        model=model,
        changes=changes,
        numbers={"eta": found.eta, "damage": found.damage, "num_evaluations": len(found.tried)},
        notes={
            "budget": cfg.budget,
            "budget_on": cfg.budget_on.name,
            "budget_rows": cfg.budget_rows.name,
            "tried": [{"eta": eta, "damage": value if math.isfinite(value) else None} for eta, value in found.tried],
        },
    )


def _is_transposed(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)


def _read(given: Given) -> dict[str, Curvature]:
    from safetensors.torch import load_file

    if given.files.curvature is None:
        raise ValueError("an influence step needs the Fisher matrix of the retain rows")
    tensors: dict[str, Any] = load_file(given.files.curvature / "curvature.safetensors")
    return read_curvatures(tensors)


def _budget_rows(given: Given) -> list[WeightedRow]:
    """The rows that damage is measured on, each counting the same; a seeded choice where not all are."""
    cfg, files = given.cfg.influence_step, given.files
    if cfg.budget_rows is BudgetRows.retain:
        rows = [row._replace(weight=1.0) for row in given.rows.retain]
    else:
        if files.val_clean is None:
            raise DataError(
                "unlearning: need clean validation rows for influence_step.budget_rows=val, got a pack without. Pass "
                "data.val_clean=FILE, or unlearning.influence_step.budget_rows=retain"
            )
        records = read_records(files.val_clean)
        encoded = encode_rows(given.tokenizer, [record.texts for record in records], max_length=given.max_length)
        rows = [
            WeightedRow(record.id, 1.0, row) for record, row in zip(records, encoded, strict=True) if row is not None
        ]
    if not rows:
        raise DataError(
            "unlearning: need rows to measure damage on, got none that fit in max_length. Pass max_length=..., or "
            "unlearning.influence_step.budget_rows=retain"
        )
    if cfg.num_budget_rows is not None and cfg.num_budget_rows < len(rows):
        order = permutation(len(rows), seed=given.seed, stream=BUDGET_STREAM, part=0)
        rows = [rows[place] for place in sorted(order[: cfg.num_budget_rows])]
    return rows
