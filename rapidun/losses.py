"""The one response-token cross-entropy. Influence, training and evaluation all call it."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


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


def example_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """l_i = mean over the response tokens of -log p(y_t | x, y_<t); [B, T, V], [B, T] -> [B] nats a token."""
    counts = response_mask(labels).sum(dim=1).clamp(min=1)
    return -token_log_probs(logits, labels).sum(dim=1) / counts
