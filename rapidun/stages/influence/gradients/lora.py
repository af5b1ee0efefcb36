"""LoRA layers of peft at the cost of their arithmetic: what a capture runs in the place of their own forward pass.

    y = W x + s B (A x),   dB = s sum_t g_t (A x_t)^T,   dA = s sum_t (B^T g_t) x_t^T.

peft computes the branch in the type of its factors, which for a bfloat16 model means float32: casts of every input and
output. Here it runs in the type of the activations, as under autocast. A branch whose B is zero, as every new adapter's
is, adds nothing to y and passes nothing back, and only A x is computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# peft's layers whose forward pass is the formula above
PLAIN = ("Linear", "Linear4bit", "Linear8bitLt")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The one active adapter of a LoRA layer."""

    layer: nn.Module
    down: nn.Linear  # A [r, in]
    up: nn.Linear  # B [out, r]
    scaling: float
    is_zero: bool  # B = 0

    def reduce(self, x: Tensor) -> Tensor:
        """A x: [..., in] -> [..., r]."""
        return nn.functional.linear(x, self.down.weight.to(x.dtype))

    def add(self, output: Tensor, reduced: Tensor) -> Tensor:
        """W x + s B (A x)."""
        up = (self.up.weight * self.scaling).to(output.dtype)
        added = torch.addmm(output.flatten(0, -2), reduced.flatten(0, -2), up.T)
        # to autograd no view: a layer that goes on in place (Falcon) would cut the hooks of a view off
        return torch.ops.aten._unsafe_view(added, output.shape)


def plain_branches(model: nn.Module) -> list[Branch]:
    """The LoRA layers that can run by the formula: one active adapter, not merged, no variant of LoRA, no bias."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        return []
    found = []
    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or type(layer).__name__ not in PLAIN:
            continue
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if len(active) != 1 or layer.merged or layer.disable_adapters or not isinstance(layer.base_layer, nn.Linear):
            continue
        name = active[0]
        down, up = layer.lora_A[name], layer.lora_B[name]
        plain = type(down) is nn.Linear and type(up) is nn.Linear and down.bias is None and up.bias is None
        if not plain or name in layer.lora_variant:
            continue
        is_zero = not bool(up.weight.any())
        found.append(Branch(layer=layer, down=down, up=up, scaling=layer.scaling[name], is_zero=is_zero))
    return found


@contextmanager
def bypassed(branches: list[Branch]) -> Iterator[None]:
    """Let the layers run their base layer alone; as before afterwards."""
    try:
        for branch in branches:
            branch.layer._disable_adapters = True  # type: ignore[assignment]
        yield
    finally:
        for branch in branches:
            branch.layer._disable_adapters = False  # type: ignore[assignment]
