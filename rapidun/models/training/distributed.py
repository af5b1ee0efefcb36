"""Sums and maxima over the processes that train together."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """The sum over all processes, number by number; the values themselves where there is one process."""
    return _reduced(values, device, torch.distributed.ReduceOp.SUM)


def largest(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest over all processes, number by number."""
    return _reduced(values, device, torch.distributed.ReduceOp.MAX)


def _reduced(values: Sequence[float], device: torch.device, how: "torch.distributed.ReduceOp.RedOpType") -> list[float]:
    if not is_distributed():
        return list(values)
    exchanged: Tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(exchanged, op=how)
    return exchanged.tolist()
