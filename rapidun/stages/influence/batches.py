"""The rows of a gradient pass in padded batches."""

from typing import NamedTuple

import torch
from torch import Tensor

from rapidun.base.errors import DataError
from rapidun.models.losses import response_mask
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import Encoded, collate


class RowBatch(NamedTuple):
    """Some rows, padded to one length."""

    rows: list[int]
    tensors: dict[str, Tensor]  # input_ids, attention_mask, labels: [B, T] each


def make_batches(
    encoded: list[Encoded],
    names: list[str],
    *,
    tokens_per_batch: int,
    pad_token_id: int,
    device: torch.device,
    max_rows: int | None = None,
) -> list[RowBatch]:
    """Padded batches of similar lengths.

    Raises: DataError for a row without a response token to predict.
    """
    batches = []
    lengths = [len(row.input_ids) for row in encoded]
    for rows in token_budget_batches(lengths, max_tokens=tokens_per_batch, max_rows=max_rows):
        tensors = collate([encoded[row] for row in rows], pad_token_id=pad_token_id)
        for row, count in zip(rows, response_mask(tensors["labels"]).sum(dim=1).tolist(), strict=True):
            if count == 0:
                raise DataError(f"influence: need a response token behind another token, got none in {names[row]}")
        batches.append(RowBatch(rows, {key: value.to(device) for key, value in tensors.items()}))
    return batches
