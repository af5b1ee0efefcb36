"""From inner products to influence scores: dot or cosine, and the four blocks of forget and retain rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from rapidun.config.influence import Score


class Blocks(NamedTuple):
    """Scores by group; the first letter is the training set, the second the query set."""

    ff: Tensor  # [num_forget, num_forget]
    fr: Tensor  # [num_forget, num_retain]
    rf: Tensor  # [num_retain, num_forget]
    rr: Tensor  # [num_retain, num_retain]


def gradient_norms(gram: Tensor) -> Tensor:
    """|g_i| = sqrt <g_i, g_i>; [N, N] -> [N]."""
    return gram.diagonal().clamp(min=0).sqrt()


def influence_scores(
    gram: Tensor, *, score: Score, norms: Tensor | None = None, query_norms: Tensor | None = None
) -> Tensor:
    """Score of training row i for query row j: <g_i, g_j>, for cosine divided by |g_i| |g_j|.

    A row whose gradient is zero (lora_A while lora_B = 0) has cosine 0 with every row, itself included.

    Args:
        gram: [N, N] float64 inner products.
        norms, query_norms: [N] of the training rows and of the queries, where the queries are preconditioned;
            both the roots of the diagonal by default.
    Returns: [N, N] float64. No unit for cosine; (loss unit per parameter unit)^2 for dot. Positive = helpful.
    Source: RapidUn (arXiv 2512.04457); METHOD section 3 (docs/method.md).
    """
    if score is Score.dot:
        return gram
    norms = gradient_norms(gram) if norms is None else norms
    query_norms = norms if query_norms is None else query_norms
    # one factor after the other: the product of two small norms can underflow
    return (gram * _inverse(norms).unsqueeze(1) * _inverse(query_norms).unsqueeze(0)).clamp(-1.0, 1.0)


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, 1.0 / norms, torch.zeros_like(norms))


def split_blocks(scores: Tensor, *, num_forget: int) -> Blocks:
    """Cut [N, N] scores, forget rows first, into the four blocks."""
    f, r = slice(0, num_forget), slice(num_forget, len(scores))
    return Blocks(ff=scores[f, f], fr=scores[f, r], rf=scores[r, f], rr=scores[r, r])
