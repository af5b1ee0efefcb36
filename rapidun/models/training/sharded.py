"""Weights that FSDP shards over the processes of a run: put together again for saving.

Sharding is accelerate's: `accelerate launch --use_fsdp` (its FSDP_* variables say how) and transformers' Trainer do it.
accelerate 1.15 does it over GPUs only: for processes on CPUs it leaves ACCELERATE_USE_FSDP aside, without a word.
"""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# what wrappers of single blocks put into names
WRAPPED = "_checkpoint_wrapped_module."


def asked_for() -> bool:
    """Whether accelerate was told to shard."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process takes part."""
    gather = getattr(tensor, "full_tensor", None)
    found: Tensor = tensor if gather is None else gather()
    return found


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of what trains, whole and by its plain name; every process takes part."""
    return {
        name.replace(WRAPPED, ""): whole(parameter.detach()).cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model that is not sharded these weights, by name.

    Raises: KeyError for one that it lacks.
    """
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
