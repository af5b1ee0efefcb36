"""RepSelect: ascend on F only along what its gradients do not have in common.

For each adapted weight matrix theta, `rounds` times:
  1. one pass of an adversarial LoRA towards F: SGD on mean_i w_i l_i, rows_per_step rows a step; 2. with it on, W =
  -sum_{i in F} w_i grad l_i with respect to theta; 3. the adapter off, W = U diag(S) V^T to rank k, and each of these
  directions made as small as the k-th, on both sides:
         filtered W = (I - U D U^T) W (I - V D V^T),   D = diag(1 - S_min / S),   S_min the k-th singular value
  4. theta -= learning_rate * filtered W.
What is large in W is what many forget rows share with each other and with everything else; what a relearning attack
would move first is drawn out by the adapter of step 1, and is in W before its large directions are taken away.

Source: Sondej, Yang, Mahdi 2026 (arXiv 2606.17168): forget gradients, soft collapse on both sides, the linear layers of
the MLP. From the authors' released configuration: k 512, the adapter's rate 0.01, steps along the same filtered W until
a KL of 0.01 to the start model is spent on held-out text (here: on the retain rows, and the length is found by
bisection, budget.py), or a fixed rate of 0.05. Ours to decide: the adapter has peft's defaults (r 8, alpha 8, no
dropout), seeded; l_i is a mean over each row's response tokens where the release takes the mean over a batch's tokens;
W is the sum over rows, theirs the sum over batches of means (so their rate counts per batch); the SVD is exact, theirs
randomised; directions that W does not have (S below rounding) are left out of k; each of `rounds` takes new gradients.
Fused experts are not edited.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rapidun.config.edits import BudgetOn, Repselect
from rapidun.models.adapters import add_lora
from rapidun.models.rng import permutation
from rapidun.stages.unlearning.edits.base import Edited, Given
from rapidun.stages.unlearning.edits.budget import FIRST, LONGEST, Damage, longest_step, norm
from rapidun.stages.unlearning.edits.changes import Changes
from rapidun.stages.unlearning.edits.gradients import backward, handing_on, summed_gradients
from rapidun.stages.unlearning.edits.rows import EditRows, to_batch

ORDER_STREAM = 12


def filtered(gradient: Tensor, num_components: int) -> tuple[Tensor, int]:
    """(I - U D U^T) W (I - V D V^T), D = diag(1 - S_min / S) over the first k directions; and the k that W has.

    Args: gradient: [rows, columns] W.
    """
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    floor = torch.finfo(s.dtype).eps * max(gradient.shape) * s[0]
    k = min(num_components, int((s > floor).sum()))
    if k == 0:
        return gradient, 0
    u, s, v = u[:, :k], s[:k], vh[:k].T
    shrink = 1 - s[-1] / s
    w = gradient - ((gradient @ v) * shrink) @ v.T
    return w - u @ (shrink.unsqueeze(1) * (u.T @ w)), k


def adapt_to_forget(
    adapted: nn.Module, rows: EditRows, *, learning_rate: float, rows_per_step: int, seed: int, part: int
) -> None:
    """One pass of SGD over F in a seeded order: each factor of the adapter -= learning_rate * grad mean_i w_i l_i."""
    factors = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    size = rows_per_step if rows.padded else 1
    order = permutation(len(rows.forget), seed=seed, stream=ORDER_STREAM, part=part)
    first = next(iter(factors.values()))
    gradients: dict[str, Tensor] = {}
    with handing_on(adapted, factors, gradients.__setitem__):
        for start in range(0, len(order), size):
            chosen = [rows.forget[place] for place in order[start : start + size]]
            batch = to_batch(chosen, pad_token_id=rows.pad_token_id, like=first)
            backward(adapted, batch, weights=batch.weights / len(chosen))
            with torch.no_grad():
                for name, gradient in gradients.items():
                    factors[name].sub_(learning_rate * gradient)
            gradients.clear()


def repselect_round(
    model: Any, rows: EditRows, cfg: Repselect, *, seed: int, part: int
) -> tuple[Any, dict[str, Tensor], dict[str, int]]:
    """Steps 1 to 3: the model as it was, the filtered W of each weight, and the directions that were collapsed."""
    names = {id(module): name for name, module in model.named_modules()}
    adapted = add_lora(model, cfg.lora, seed=seed + part, section="unlearning.repselect")
    if cfg.lora_learning_rate:
        adapt_to_forget(
            adapted,
            rows,
            learning_rate=cfg.lora_learning_rate,
            rows_per_step=cfg.rows_per_step,
            seed=seed,
            part=part,
        )
    layers = {names[id(layer)]: layer for layer in _base_layers(adapted)}
    weights: Mapping[str, nn.Parameter] = {f"{name}.weight": layer.weight for name, layer in layers.items()}
    sums = summed_gradients(adapted, weights, rows, rows.forget)
    base = adapted.unload()
    found, kept = {}, {}
    for name in weights:
        found[name], kept[name] = filtered(-sums.pop(name), cfg.num_components)
    return base, found, kept


def repselect(given: Given) -> Edited:
    """Change the adapted weights in place.

    With a budget round n of N steps as far as a damage of n / N of it allows, told against the model before the first.
    Cost of a round: two forward and backward passes of F, and an SVD of each adapted weight (rows * columns * the
    smaller side); with a budget about ten forward passes of R. Raises: ModelError for a budget that cannot be met or
    spent.
    """
    cfg, model, rows, tracker = given.cfg.repselect, given.model, given.rows, given.tracker
    damage = None if cfg.budget is None else Damage(model, rows, rows.retain, on=BudgetOn.kl)
    start: dict[str, Tensor] = {}
    kept: dict[str, int] = {}
    done: list[dict[str, float]] = []
    for part in range(cfg.rounds):
        tracker.progress(part, cfg.rounds, "rounds")
        model, steps, kept = repselect_round(model, rows, cfg, seed=given.seed, part=part)
        before = {name: model.get_parameter(name).detach().clone() for name in steps}
        start = start or before
        if cfg.budget is None or damage is None:
            move(model, before, steps, cfg.learning_rate)
            done.append({"learning_rate": cfg.learning_rate})
            continue
        spent = done[-1]["damage"] if done else 0.0
        scale = norm(before) / max(norm(steps), torch.finfo(torch.float32).tiny)
        found = longest_step(
            partial(damage_of, damage, model, before, steps),
            budget=spent + (cfg.budget - spent) / (cfg.rounds - part),
            spend=cfg.spend,
            first=FIRST * scale,
            longest=LONGEST * scale,
            none=spent,
            max_evaluations=cfg.max_evaluations,
            what="unlearning.repselect.budget",
        )
        move(model, before, steps, found.eta)
        done.append({"learning_rate": found.eta, "damage": found.damage, "num_evaluations": len(found.tried)})
    changes = Changes.of(model)
    with torch.no_grad():
        for name, value in start.items():
            # what changed is told against the model before the first round
            parameter = model.get_parameter(name)
            edited = parameter.detach().clone()
            parameter.copy_(value)
            changes.set(name, parameter, edited)
    few = [name for name, k in kept.items() if k < cfg.num_components]
    return Edited(
        model=model,
        changes=changes,
        numbers=done[-1],
        notes={"rounds": done, "num_components": kept, "num_weights_of_lower_rank": len(few)},
    )


@torch.no_grad()
def move(model: nn.Module, start: Mapping[str, Tensor], steps: Mapping[str, Tensor], rate: float) -> None:
    """theta = start - rate * filtered W."""
    for name, step in steps.items():
        parameter = model.get_parameter(name)
        parameter.copy_(start[name].to(step.dtype) - rate * step)


def damage_of(
    damage: Damage, model: nn.Module, start: Mapping[str, Tensor], steps: Mapping[str, Tensor], rate: float
) -> float:
    move(model, start, steps, rate)
    return damage()


def _base_layers(adapted: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module.get_base_layer() for module in adapted.modules() if isinstance(module, LoraLayer)]
