"""An adapter made part of the model it stands on: merged into plain weights, kept as a frozen product beside others.

    plain:      W <- W + s B A        (DoRA and whole matrices as peft merges them)
    quantised:  y = Q x + s B (A x)   the weights Q stay as they are; a hook adds the product to what comes out

Either way no layer is wrapped: modules, their names and their order are those of the base. So influence finds the same
weights, a new LoRA adapter the same targets, and dL/dy is the gradient with respect to the output of the merged layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ModelError
from rapidun.models.load import peft_renaming
from rapidun.models.tied import is_quantised, note_untied, untie_adapted

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "default"
# of the adapter's own change, in norm, that rounding may take before it is spoken of
MOST_LOST = 0.1


class FrozenProduct:
    """A forward hook that adds s B (A x) to a layer's output, in the type of the factors, as peft does.

    Args: down: A [r, in]. up: B [out, r].
    """

    def __init__(self, down: Tensor, up: Tensor, *, scaling: float) -> None:
        self.down, self.up, self.scaling = down, up, scaling

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        from torch.nn.functional import linear

        x = args[0] if args else kwargs["input"]
        reduced = linear(x.to(self.down.dtype), self.down)  # [..., in] -> [..., r]
        return output + (linear(reduced, self.up) * self.scaling).to(output.dtype)


def fold(adapted: Any, *, say: Callable[[str], None]) -> Any:
    """Take a PEFT model apart again, what its adapter changes left in the model.

    Weights that are adapted and tied to others are untied first. Said where rounding to 16 bits takes much of it.

    Returns: the base model, every parameter as trainable as it was before the adapter came.
    Raises: ModelError for a variant of LoRA on a quantised layer.
    """
    from peft.tuners.lora import LoraLayer

    untie_adapted(adapted)
    beside, lost = is_quantised(adapted.get_base_model()), _Lost()
    for name, layer in list(adapted.named_modules()):
        if not isinstance(layer, LoraLayer) or NAME not in layer.active_adapters:
            continue
        if beside and not is_plain(layer.get_base_layer()):
            _keep_beside(layer, name)
        else:
            lost.merge(layer)
    with peft_renaming():
        # what is merged stays; wrappers of whole modules hand these over
        model = adapted.unload()
    note_untied(model)
    if lost.share > MOST_LOST:
        say(
            f"model: rounding to {str(model.dtype).removeprefix('torch.')} takes {lost.share:.0%} of what the adapter "
            "changes (in norm) when it is merged. Pass model.dtype=float32 where its behaviour is weaker than it was"
        )
    return model


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer's weight holds its numbers, not codes of them."""
    weight = getattr(layer, "weight", None)
    return weight is not None and weight.dtype.is_floating_point and not hasattr(weight, "quant_state")


class _Lost:
    """What rounding takes of the merged changes: |(W_after - W_before) - D| / |D| over all layers."""

    def __init__(self) -> None:
        self.error = self.norm = 0.0

    def merge(self, layer: Any) -> None:
        weight = getattr(layer.get_base_layer(), "weight", None)
        measured = weight is not None and weight.dtype.itemsize < 4 and not layer.lora_variant
        before = None if weight is None or not measured else weight.detach().clone()
        change = layer.get_delta_weight(NAME).detach() if measured else None
        layer.merge()
        if before is None or change is None:
            return
        after = layer.get_base_layer().weight.detach()
        # in float32: 16 bits would round the difference once more
        made, meant = after.float() - before.float(), change.float()
        self.error += float((made - meant).square().sum())
        self.norm += float(meant.square().sum())

    @property
    def share(self) -> float:
        return (self.error / self.norm) ** 0.5 if self.norm else 0.0


def _keep_beside(layer: Any, name: str) -> None:
    from torch import nn

    base, factors = layer.get_base_layer(), (layer.lora_A[NAME], layer.lora_B[NAME]) if NAME in layer.lora_A else ()
    if len(factors) != 2 or layer.lora_variant or not all(isinstance(one, nn.Linear) for one in factors):
        raise ModelError(
            f"model: need plain LoRA beside quantised weights, got another adapter for {name}. Pass "
            "model.adapter_as=merged (over a base that is not quantised yet), or model.quantisation=none"
        )
    down, up = (factor.weight.detach() for factor in factors)
    product = FrozenProduct(down, up, scaling=layer.scaling[NAME])
    base.register_forward_hook(product, with_kwargs=True)
