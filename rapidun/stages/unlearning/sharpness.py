"""Sharpness-aware unlearning: the forget gradient is taken a step of length rho towards a larger forget loss.

    g = gradient of the forget term of the whole optimiser step at theta;  epsilon = rho g / |g|
    step direction = gradient of the forget term at theta + epsilon, plus gradient of the retain term at theta

The forget term is l_f of the paper, to be minimised: ascent on the poisoned response is part of it, as is whatever else
the objective has in it. |g| is over all trained weights together. Source: arXiv 2502.05374, equations 4 and 5.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rapidun.models.training.distributed import is_distributed

RandomState = tuple[Tensor, Tensor | None]


def random_state(device: torch.device) -> RandomState:
    """What dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def same_masks(state: RandomState, device: torch.device) -> Iterator[None]:
    """Draw as at `state`; afterwards as if nothing had been drawn."""
    before = random_state(device)
    set_random_state(state, device)
    try:
        yield
    finally:
        set_random_state(before, device)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def ascent(gradients: Sequence[Tensor], *, rho: float) -> list[Tensor]:
    """rho g / |g|, tensor by tensor; zeros where the gradient is zero or no number (the loss tells of that).

    Args: gradients: of this process's rows, summed over all processes in place.
    """
    if is_distributed():
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
    if not gradients:
        return []
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    scale = torch.where(torch.isfinite(norm) & (norm > 0), rho / norm, torch.zeros_like(norm))
    return [torch.nan_to_num(gradient) * scale for gradient in gradients]


@contextmanager
def moved(parameters: Sequence[nn.Parameter], steps: Sequence[Tensor]) -> Iterator[None]:
    """The parameters moved by the steps, in place; afterwards as they were, to the bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
