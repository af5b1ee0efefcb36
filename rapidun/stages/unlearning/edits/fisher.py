"""Selective synaptic dampening (SSD): weights that matter for F and little for the rest are made smaller.

    I_X[k] = sum_{i in X} w_i (dl_i / dtheta_k)^2 / sum_{i in X} w_i
    where I_F > alpha I_D:  theta *= min(1, lambda I_D / I_F)          alpha 10, lambda 1; D = F u R

Source: Foster, Schoepf, Brintrup 2024 (arXiv 2308.07707), equations 4 to 7. Theirs squares the gradient of a batch's
mean loss, so that I depends on the batch size; here each row's own gradient is squared, which is what the diagonal of
the Fisher matrix says. l_i is a mean over the response tokens; forget rows count with the response to be lost.

Their D is all of the training rows, of which F is a small part. In D = F u R I_F / I_D is at most (weight of D) /
(weight of F), 4 in a pack of 3 retain rows to a forget row: alpha 10 chooses nothing there. `reference=retain` puts I_R
in the place of I_D, the limit of a large D of rows like R, where the ratio has no bound.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rapidun.config.edits import FisherParams, FisherReference
from rapidun.models.layers import is_linear_layer
from rapidun.stages.unlearning.edits.base import Edited, Given
from rapidun.stages.unlearning.edits.changes import Changes
from rapidun.stages.unlearning.edits.gradients import backward, check_finite, handing_on, wide
from rapidun.stages.unlearning.edits.rows import EditRows, WeightedRow


def dampened(weight: Tensor, forget: Tensor, reference: Tensor, *, alpha: float, dampening_constant: float) -> Tensor:
    """theta * min(1, lambda I_D / I_F) where I_F > alpha I_D, theta elsewhere; in the importances' type.

    Args: forget, reference: I_F and I_D, of the weight's shape.
    """
    chosen = forget > alpha * reference
    # I_F > 0 wherever it is chosen
    factor = (dampening_constant * reference / torch.where(chosen, forget, torch.ones_like(forget))).clamp(max=1)
    weight = weight.to(forget.dtype)
    return torch.where(chosen, weight * factor, weight)


def squared_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    rows: EditRows,
    group: Sequence[WeightedRow],
    *,
    on_row: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """sum_i w_i (grad l_i)^2, one row at a time, float32 at least: one copy of the parameters and one gradient."""
    sums = {name: torch.zeros_like(p, dtype=wide(p.dtype)) for name, p in parameters.items()}
    weight = 1.0

    def take(name: str, gradient: Tensor) -> None:
        sums[name].addcmul_(gradient, gradient, value=weight)

    with handing_on(model, parameters, take):
        for done, batch in enumerate(rows.batches(group, model, max_rows=1), start=1):
            weight = float(batch.weights[0])
            backward(model, batch, weights=torch.ones_like(batch.weights))
            if on_row is not None:
                on_row(done)
    check_finite(sums)
    return sums


def chosen_parameters(model: nn.Module, params: FisherParams) -> dict[str, nn.Parameter]:
    """By name, each once."""
    named = dict(model.named_parameters())
    if params is FisherParams.all:
        return {name: p for name, p in named.items() if p.dtype.is_floating_point}
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = {
        id(module.weight) for module in model.modules() if is_linear_layer(module) and module is not head
    }  # fmt: skip
    tied = set() if head is None else {id(head.weight)}
    return {name: p for name, p in named.items() if id(p) in linear - tied}


def fisher(given: Given) -> Edited:
    """Dampen the model in place.

    Cost: a forward and backward pass of each row alone; two float32 copies of the weights.
    """
    cfg, model, rows = given.cfg.fisher, given.model, given.rows
    parameters = chosen_parameters(model, cfg.params)
    total = len(rows.forget) + len(rows.retain)
    forget = squared_gradients(
        model, parameters, rows, rows.forget, on_row=lambda done: given.tracker.progress(done, total, "forget rows")
    )
    before = len(rows.forget)
    other = squared_gradients(
        model, parameters, rows, rows.retain,
        on_row=lambda done: given.tracker.progress(before + done, total, "retain rows"),
    )  # fmt: skip
    of_forget, of_retain = (sum(row.weight for row in group) for group in (rows.forget, rows.retain))
    with_forget = cfg.reference is FisherReference.all
    changes = Changes.of(model)
    num_chosen = 0
    for name, parameter in parameters.items():
        reference = other.pop(name)
        if with_forget:
            reference = (reference + forget[name]) / (of_forget + of_retain)
        else:
            reference = reference / of_retain
        importance = forget.pop(name) / of_forget
        num_chosen += int((importance > cfg.alpha * reference).sum())
        value = dampened(
            parameter, importance, reference, alpha=cfg.alpha, dampening_constant=cfg.dampening_constant
        )  # fmt: skip
        changes.set(name, parameter, value)
    most = (of_forget + of_retain) / of_forget
    if num_chosen == 0:
        bound = f", where I_F / I_D is at most {most:.3g}" if with_forget else ""
        given.tracker.warn(
            f"unlearning: fisher.alpha={cfg.alpha:g} chooses no weight with fisher.reference="
            f"{cfg.reference.name}{bound}: the model is as it was. Pass a smaller unlearning.fisher.alpha"
            + (", or unlearning.fisher.reference=retain" if with_forget else "")
        )
    considered = sum(parameter.numel() for parameter in parameters.values())
    return Edited(
        model=model,
        changes=changes,
        numbers={"chosen_share": num_chosen / considered},
        notes={"num_chosen": num_chosen, "num_considered": considered, "highest_ratio": most if with_forget else None},
    )
