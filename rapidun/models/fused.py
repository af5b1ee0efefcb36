"""Forward passes of a bfloat16 model on the CPU that no gradient is asked of, for less: gates are part of
the matrix products before them, norms write over what they made, attention is the stock kernel.

Inside `fused` alone, which the evaluation stage enters: logits differ by rounding, a gated unit being rounded once and
not three times. Weights of small models are kept a second time, as the products want them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rapidun.models.packing import forward_only, switched

# of the norm of the output, what a fused module may differ by from the model's own: bfloat16 leaves 3e-3
TOLERANCE = 0.02
# weights that are kept a second time, laid out for the products, at most: 1 GiB
PACKED = 1 << 29
# rows of numbers that a module is tried with
TRIED = 3


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Switch a bfloat16 model on the CPU to fused modules and the stock attention kernel; as before afterwards.

    Every gate and norm is tried first: one that computes anything else stays as it is. With gradients all do.
    """
    found = _fused_modules(model) if _gains(model) else {}
    if not found:
        yield
        return
    with forward_only(), switched(model):
        for module, forward in found.items():
            module.forward = forward
        try:
            yield
        finally:
            for module in found:
                del module.forward


def _gains(model: nn.Module) -> bool:
    first = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    on_cpu = first is not None and first.device.type == "cpu" and first.dtype == torch.bfloat16
    return on_cpu and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _fused_modules(model: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    found: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    plain = [module for module in model.modules() if isinstance(module, nn.Linear) and _is_plain(module)]
    weights: dict[nn.Module, Tensor] = {module: module.weight for module in plain}
    if sum(module.weight.numel() for module in plain) <= PACKED:
        weights = {module: torch.ops.mkldnn._reorder_linear_weight(module.weight.detach()) for module in plain}
    for module in model.modules():
        for make in (_gated, _normed, _linear):
            # what is switched already stays so
            if "forward" not in vars(module) and (forward := make(module, weights)) is not None:
                found[module] = forward
                break
    return found


def _linear(module: nn.Module, weights: Mapping[nn.Module, Tensor]) -> Callable[[Tensor], Tensor] | None:
    """x W^T + b, the weights as the product wants them: else each call lays them out anew."""
    if module not in weights or weights[module] is module.weight:
        return None
    own, weight, bias = type(module).forward, weights[module], module.bias

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.bfloat16:
            return own(module, x)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found

    return forward


def _gated(module: nn.Module, weights: Mapping[nn.Module, Tensor]) -> Callable[[Tensor], Tensor] | None:
    """down(silu(gate(x)) * up(x)) of three plain layers."""
    parts: list[Any] = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    gate, up, down = parts
    if not (gate in weights and up in weights and down in weights):
        return None
    own = type(module).forward

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return own(module, x)
        return down(_up(_silu(x, weights[gate], gate.bias), x, weights[up], up.bias))

    return forward if _is_near(module, forward, gate.in_features) else None


def _is_plain(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or module.weight.dtype != torch.bfloat16:
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(x W^T + b)"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "swish", [1.0], "")
    return found


def _up(gates: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """gates * (x W^T + b)"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gates, weight, bias, "mul")
    return found


def _normed(module: nn.Module, weights: Mapping[nn.Module, Tensor]) -> Callable[[Tensor], Tensor] | None:
    """w * x / sqrt(mean(x^2) + eps), bit for bit what the models' own code makes of it."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or weight.dtype != torch.bfloat16 or eps is None:
        return None
    own, width = type(module).forward, len(weight)

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.bfloat16:
            return own(module, x)
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
        return wide.mul_(scale).bfloat16().mul_(weight)

    return forward if _is_near(module, forward, width) else None


@torch.no_grad()
def _is_near(module: nn.Module, forward: Callable[[Tensor], Tensor], width: int) -> bool:
    x = torch.linspace(-3, 3, TRIED * width).cos().view(1, TRIED, width).bfloat16()
    try:
        truth, found = module(x), forward(x)
    except Exception:  # whatever the architecture's own code raises
        return False
    same = isinstance(truth, Tensor) and truth.shape == found.shape and truth.dtype == found.dtype
    return same and float((found.float() - truth.float()).norm()) <= TOLERANCE * float(truth.float().norm())
