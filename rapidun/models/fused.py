"""Forward passes of a bfloat16 model on the CPU that no gradient is asked of, for less: gates are part of
the matrix products before them, norms write over what they made, attention is the stock kernel.

Inside `fused` alone, which the evaluation stage enters: logits differ by rounding, a gated unit being rounded once and
not three times. Weights of small models are kept a second time, as the products want them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rapidun.models.fused_attention import attention, is_the_same
from rapidun.models.packing import forward_only, switched
from rapidun.models.products import Weights, product, silu_product, times_product

# of the norm of the output, what a fused module may differ by from the model's own: bfloat16 leaves 3e-3
TOLERANCE = 0.02
# rows of numbers that a module is tried with; tokens that are normed at a time
TRIED, TOGETHER = 3, 256


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


def _fused_modules(model: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    found: dict[nn.Module, Callable[..., Any]] = {}
    weights = Weights(model)
    # what a layer does itself for those within it
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        # what is switched already stays so
        is_switched = "forward" in vars(module)
        forward = None if is_switched else _fused(module, weights)
        if forward is not None:
            found[module] = forward
        if is_switched or forward is not None:
            inside |= {part for part in module.children() if part in weights}
    return found


def _fused(module: nn.Module, weights: Weights) -> Callable[..., Any] | None:
    makes = (_attention, _gated, _normed, _linear)
    return next((forward for make in makes if (forward := make(module, weights)) is not None), None)


def _linear(module: nn.Module, weights: Weights) -> Callable[[Tensor], Tensor] | None:
    """x W^T + b."""
    if not (isinstance(module, nn.Linear) and module in weights and weights.laid_out):
        return None
    own, weight, bias = type(module).forward, weights.of(module), module.bias

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.bfloat16:
            return own(module, x)
        return product(x, weight, bias)

    return forward


def _attention(module: nn.Module, weights: Weights) -> Callable[..., Any] | None:
    forward = attention(module, weights)
    return forward if forward is not None and is_the_same(module, forward, tolerance=TOLERANCE) else None


def _gated(module: nn.Module, weights: Weights) -> Callable[[Tensor], Tensor] | None:
    """down(silu(gate(x)) * up(x)) of three plain layers."""
    parts: list[Any] = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if not all(part in weights for part in parts):
        return None
    own, (gate, up, down) = type(module).forward, parts
    wide = [weights.of(part) for part in parts]

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.bfloat16:
            return own(module, x)
        gated = times_product(silu_product(x, wide[0], gate.bias), x, wide[1], up.bias)
        return product(gated, wide[2], down.bias)

    return forward if _is_near(module, forward, gate.in_features) else None


def _normed(module: nn.Module, weights: Weights) -> Callable[[Tensor], Tensor] | None:
    """w * x / sqrt(mean(x^2) + eps), bit for bit what the models' own code makes of it."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or weight.dtype != torch.bfloat16 or eps is None:
        return None
    own, width = type(module).forward, len(weight)

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.bfloat16:
            return own(module, x)
        rows = x.reshape(-1, width)
        found = torch.empty_like(rows)
        # some tokens at a time, so that what is wide stays in the cache
        room = torch.empty(min(len(rows), TOGETHER), width)
        for top in range(0, len(rows), TOGETHER):
            part, out = rows[top : top + TOGETHER], found[top : top + TOGETHER]
            wide = room[: len(part)].copy_(part)
            scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
            out.copy_(wide.mul_(scale)).mul_(weight)
        return found.view(x.shape)

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
