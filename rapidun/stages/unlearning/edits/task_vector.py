"""Task arithmetic: what fine-tuning on the poisoned responses adds is taken off.

    theta - s (theta_F - theta)          theta_F = theta fine-tuned on the responses that the model should lose

With target=lora theta_F - theta is the adapter's (alpha / r) B A, so the edit is that adapter with B multiplied by -s:
exact, over whatever base. With target=full all weights move. The fine-tuning is an artifact of its own (task_model.py):
a sweep over s trains once. Row weights act there, on each row's loss.

Source: Ilharco et al. 2023 (arXiv 2212.04089), forgetting by negation; s is found on validation rows there, among 0.05
to 1.
"""

import dataclasses

import torch
from torch import Tensor

from rapidun.config.training import Target
from rapidun.models.load import load_adapter
from rapidun.stages.unlearning.edits.base import Edited, Given
from rapidun.stages.unlearning.edits.changes import Change, Changes


def negated(start: Tensor, tuned: Tensor, *, scale: float) -> Tensor:
    """theta - s (theta_F - theta), in the wider of the two types."""
    dtype = torch.promote_types(start.dtype, tuned.dtype)
    return start.to(dtype) - scale * (tuned.to(dtype) - start.to(dtype))


def task_vector(given: Given) -> Edited:
    """Put the negated adapter on the model, or change all weights in place. Cost: the fine-tuning; then none."""
    if given.files.task_model is None:
        raise ValueError("a task vector needs the model fine-tuned on the poisoned responses")
    return _adapter(given) if given.cfg.target is Target.lora else _all_weights(given)


@torch.no_grad()
def _adapter(given: Given) -> Edited:
    assert given.files.task_model is not None
    changes = Changes.of(given.model)
    base = {id(module): name for name, module in given.model.named_modules()}
    model = load_adapter(given.model, given.files.task_model / "adapter", say=given.tracker.warn)
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        up = module.lora_B["default"].weight
        up.mul_(-given.cfg.task_vector.scale)
        delta = module.get_delta_weight("default").double()
        layer = module.get_base_layer()
        weight = layer.weight
        # packed weights are not the numbers that they stand for
        square = float(weight.double().square().sum()) if weight.shape == delta.shape else 0.0
        name = f"{base[id(layer)]}.weight"
        changes.by_weight[name] = Change(
            delta.numel(), int((delta != 0).sum()), float(delta.square().sum()), square
        )  # fmt: skip
    return Edited(model=model, changes=changes, adapter=True)


def _all_weights(given: Given) -> Edited:
    assert given.files.task_model is not None
    model, scale = given.model, given.cfg.task_vector.scale
    plainly = dataclasses.replace(given.loader, quantisation="none", keep=False, dtype="float32")
    tuned = dict(plainly.load(given.files.task_model / "model").model.named_parameters())
    changes = Changes.of(model)
    for name, parameter in model.named_parameters():
        changes.set(
            name, parameter, negated(parameter.detach(), tuned[name].detach().to(parameter.device), scale=scale)
        )
    return Edited(model=model, changes=changes)
