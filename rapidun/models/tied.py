"""What a loaded model's weights are: quantised or not, tied to one another or not. Brings torch only when asked."""

from __future__ import annotations

from typing import Any


def is_quantised(model: Any) -> bool:
    return getattr(model, "quantization_method", None) is not None


def untie_adapted(model: Any) -> list[str]:
    """Give each adapted layer whose weight another module has too a copy of its own; return their names."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))
    untied = []
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer()
        weight = base._parameters.get("weight")
        if weight is not None and len(owners[id(weight)]) > 1:
            owners[id(weight)].discard(id(base))
            base.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            untied.append(name)
    return untied


def note_untied(model: Any) -> None:
    """Let the configuration say that head and embedding are two, where they are."""
    weights = [
        getattr(module, "weight", None) for module in (model.get_output_embeddings(), model.get_input_embeddings())
    ]
    if weights[0] is None or weights[0] is weights[1]:
        return
    for config in (model.config, model.config.get_text_config(decoder=True)):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
