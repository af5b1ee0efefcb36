"""Losses on validation and forget rows while unlearning goes on."""

from collections.abc import Sequence

import torch
from torch import nn

from rapidun.models.losses import example_cross_entropy
from rapidun.models.training.trainer import forward_logits
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
        values = example_cross_entropy(forward_logits(model, batch), batch["labels"])
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
) -> dict[str, float]:
    """Mean l_i on clean validation rows and on the forget rows' two responses.

    forget_preference: share of the forget rows that have both responses whose poisoned one is the likelier per
    token. A number whose rows are absent is left out.
    """
    metrics = {}
    if val_clean:
        metrics["val_loss_clean"] = _mean(cross_entropies(model, val_clean, pad_token_id=pad_token_id))
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
