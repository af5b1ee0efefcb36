"""How far a model is from the retrained one: exact KL over the vocabulary, token by token of recorded answers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rapidun.base.errors import ArtifactError
from rapidun.stages.evaluation.privacy.tokens import chunks, packed_batches
from rapidun.stages.rows.encode import Encoded


def token_kl(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference || other) of n positions, in float64: sum_v p_v (log p_v - log q_v), [n] nats, on the CPU.

    Infinite where the other model rules a token out that the reference does not.

    Args: reference, other: [n, V] logits.
    """
    parts = []
    for rows in chunks(reference):
        log_p = reference[rows].double().log_softmax(dim=1)
        log_q = other[rows].to(log_p.device).double().log_softmax(dim=1)
        p = log_p.exp()
        parts.append((p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(dim=1).cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def row_kl(
    reference: Any,
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    tokens_per_batch: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> list[tuple[float, int]]:
    """Of each row the sum of token_kl over its response tokens, nats, and how many these are; in their order.

    Raises: ArtifactError where the two models have different vocabularies.
    """
    found: dict[int, tuple[float, int]] = {}
    batches = packed_batches(
        [reference, model], rows, pad_token_id=pad_token_id, tokens_per_batch=tokens_per_batch, on_batch=on_batch
    )
    for batch, (one, other) in batches:
        if one.logits.shape != other.logits.shape:
            raise ArtifactError(
                f"evaluation.privacy: need models of one vocabulary to measure their distance, got "
                f"{one.logits.shape[1]} tokens in the retrained and {other.logits.shape[1]} in the other. Leave "
                "distance out of evaluation.privacy.run"
            )
        values = token_kl(one.logits, other.logits)
        for place, part in zip(batch, values.split(one.counts.tolist()), strict=True):
            found[place] = (float(part.sum()), len(part))
    return [found[index] for index in range(len(rows))]


def mean_kl(rows: Sequence[tuple[float, int]]) -> float | None:
    """Nats a token, every token counting the same; None of no token."""
    num_tokens = sum(count for _, count in rows)
    return math.fsum(total for total, _ in rows) / num_tokens if num_tokens else None
