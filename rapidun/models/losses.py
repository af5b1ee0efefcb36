"""The one response-token cross-entropy. Influence, training and evaluation all call it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE = -100
# logits that are worked on at once: what stays in a core's cache, or fills a GPU
CPU_CHUNK = 1 << 18
DEVICE_CHUNK = 1 << 26


def response_mask(labels: Tensor) -> Tensor:
    """[B, T] bool: where a response token stands that some position before it predicts."""
    mask = labels != IGNORE
    mask[:, 0] = False
    return mask


def token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each response token given what stands before it.

    Entry [b, t] = log p(labels[b, t] | tokens before t), read from the logits at t - 1; 0 outside the response.

    Args:
        logits: [B, T, V] any float dtype; the softmax is taken in float32 (float64 stays float64).
        labels: [B, T] int64, -100 outside the response.
    Returns: [B, T] float32 (float64 for float64 logits), nats.
    Source: METHOD section 2 (docs/method.md).
    """
    mask = response_mask(labels)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows, columns = mask.nonzero(as_tuple=True)
    # [num response tokens, V]: the softmax runs over labelled positions only
    picked = logits[rows, columns - 1].to(dtype)
    values = -F.cross_entropy(picked, labels[rows, columns], reduction="none")
    return torch.zeros(labels.shape, dtype=dtype, device=logits.device).index_put((rows, columns), values)


def example_cross_entropy(logits: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """l_i = mean over the response tokens of -log p(y_t | x, y_<t); [B, T, V], [B, T] -> [B] nats a token.

    Args: token_weights: [B, T], each token's part of the sum multiplied by it; the sum is still divided by n_i.
    """
    counts = response_mask(labels).sum(dim=1).clamp(min=1)
    values = token_log_probs(logits, labels)
    if token_weights is not None:
        values = values * token_weights
    return -values.sum(dim=1) / counts


class PackedCrossEntropy(torch.autograd.Function):
    """-log p(targets[n]) of logits [n, V], a few rows at a time: nothing of [n, V] is written but the gradient.

    The softmax is taken in float32 (float64 stays float64); the gradient is in the type of the logits. Use `apply`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """[n, V], [n] int64 -> [n] nats."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        normalisers = torch.empty(len(logits), dtype=dtype, device=logits.device)
        for rows in _row_chunks(logits):
            torch.logsumexp(logits[rows].to(dtype), dim=1, out=normalisers[rows])
        ctx.save_for_backward(logits, targets, normalisers)
        return normalisers - logits.gather(1, targets.unsqueeze(1)).squeeze(1).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, targets, normalisers = ctx.saved_tensors
        (grad,) = grads
        out = torch.empty_like(logits)
        for rows in _row_chunks(logits):
            # not in place: in the logits' own type the slice is what was saved, and another backward may come
            part = (logits[rows].to(normalisers.dtype) - normalisers[rows].unsqueeze(1)).exp_()
            part[torch.arange(len(part), device=part.device), targets[rows]] -= 1
            out[rows] = part.mul_(grad[rows].unsqueeze(1))
        return out, None


def _row_chunks(logits: Tensor) -> list[slice]:
    budget = CPU_CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
    height = max(1, budget // max(1, logits.shape[1]))
    return [slice(top, min(top + height, len(logits))) for top in range(0, len(logits), height)]
