"""Losses on validation and forget rows while unlearning goes on."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from rapidun.models.losses import IGNORE
from rapidun.models.packed import cross_entropy
from rapidun.models.training.forward import forward_packed
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import Encoded, collate

TOKENS_PER_BATCH = 2048


def cross_entropies(model: nn.Module, rows: Sequence[Encoded], *, pad_token_id: int) -> list[float]:
    """l_i of each row, in the rows' order; the caller has put the model in eval mode."""
    device = next(model.parameters()).device
    losses = [0.0] * len(rows)
    for indices in token_budget_batches([len(row.input_ids) for row in rows], max_tokens=TOKENS_PER_BATCH):
        padded = collate([rows[index] for index in indices], pad_token_id=pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in padded.items()}
        values = cross_entropy(forward_packed(model, batch))
        for index, value in zip(indices, values.tolist(), strict=True):
            losses[index] = value
    return losses


@torch.no_grad()
def validate(
    model: nn.Module,
    *,
    val_clean: Sequence[Encoded],
    poisoned: Sequence[Encoded],
    clean: Sequence[Encoded | None],
    pad_token_id: int,
    with_perplexity: bool = False,
) -> dict[str, float]:
    """Mean l_i on clean validation rows and on the forget rows' two responses.

    forget_preference: share of the forget rows that have both responses whose poisoned one is the likelier per
    token. A number whose rows are absent is left out.
    val_ppl_clean, with `with_perplexity`: exp(sum_i n_i l_i / sum_i n_i) on the clean validation rows.
    """
    metrics = {}
    if val_clean:
        losses = cross_entropies(model, val_clean, pad_token_id=pad_token_id)
        metrics["val_loss_clean"] = _mean(losses)
        if with_perplexity:
            counts = [sum(label != IGNORE for label in row.labels[1:]) for row in val_clean]
            mean = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / max(1, sum(counts))
            # a float holds e^709
            metrics["val_ppl_clean"] = math.exp(mean) if mean < 700 else math.inf
    lost = cross_entropies(model, poisoned, pad_token_id=pad_token_id)
    metrics["forget_loss_poisoned"] = _mean(lost)
    pairs = [(loss, row) for loss, row in zip(lost, clean, strict=True) if row is not None]
    if pairs:
        wanted = cross_entropies(model, [row for _, row in pairs], pad_token_id=pad_token_id)
        metrics["forget_loss_clean"] = _mean(wanted)
        metrics["forget_preference"] = _mean([float(a < b) for (a, _), b in zip(pairs, wanted, strict=True)])
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
