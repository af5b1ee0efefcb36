"""The rows that an edit is made from: encoded, with their weights; rows of weight 0 are not there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rapidun.base.errors import DataError
from rapidun.base.preemption import raise_if_requested
from rapidun.base.tracker import Tracker
from rapidun.models.batching import batching
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import Encoded, collate, encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.lost import check_triggers
from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.weights_file import read_weights

# padded tokens in one pass
TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, kw_only=True)
class EditFiles:
    """What an edit reads and writes."""

    model: Path
    forget: Path
    retain: Path
    forget_weights: Path
    retain_weights: Path
    out: Path
    # checkpoints; survives a killed process
    work: Path
    val_clean: Path | None = None
    # for influence_step: the folder of the retain rows' Fisher matrix
    curvature: Path | None = None
    # for task_vector: the folder of the model fine-tuned on the poisoned responses
    task_model: Path | None = None


class WeightedRow(NamedTuple):
    id: str
    weight: float
    encoded: Encoded


class RowBatch(NamedTuple):
    """Some rows, padded on the right to one length."""

    ids: list[str]
    tensors: dict[str, Tensor]  # input_ids, attention_mask, labels: [B, T]
    weights: Tensor  # [B]


@dataclass(frozen=True)
class EditRows:
    """F with the responses that the model should lose, R with its own."""

    forget: list[WeightedRow]
    retain: list[WeightedRow]
    pad_token_id: int
    # whether rows of one batch leave each other alone
    padded: bool = True

    def batches(
        self, rows: Sequence[WeightedRow], model: nn.Module, *, max_rows: int | None = None
    ) -> Iterator[RowBatch]:
        """Batches of similar lengths, shortest rows first. Raises: Preempted between two of them, if asked to stop."""
        first = next(p for p in model.parameters() if p.dtype.is_floating_point)
        lengths = [len(row.encoded.input_ids) for row in rows]
        most = max_rows if self.padded else 1
        for places in token_budget_batches(lengths, max_tokens=TOKENS_PER_BATCH, max_rows=most):
            raise_if_requested()
            yield to_batch([rows[place] for place in places], pad_token_id=self.pad_token_id, like=first)


def to_batch(rows: Sequence[WeightedRow], *, pad_token_id: int, like: Tensor) -> RowBatch:
    """Args: like: a weight of the model, for its device and precision."""
    padded = collate([row.encoded for row in rows], pad_token_id=pad_token_id)
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    weights = torch.tensor([row.weight for row in rows], dtype=dtype, device=like.device)
    return RowBatch([row.id for row in rows], {name: t.to(like.device) for name, t in padded.items()}, weights)


def read_edit_rows(model: Any, tokenizer: Any, files: EditFiles, *, max_length: int, tracker: Tracker) -> EditRows:
    """Encode both groups and put their weights beside them.

    Raises: DataError for a group without a row that can be encoded, or with weights of 0 alone; ModelError for rows
        that the model cannot take.
    """
    forget, retain = read_records(files.forget), read_records(files.retain)
    encoded = {
        "forget": encode_rows(tokenizer, [record.forget_texts for record in forget], max_length=max_length),
        "retain": encode_rows(tokenizer, [record.texts for record in retain], max_length=max_length),
    }
    every = [row for rows in encoded.values() for row in rows if row is not None]
    check_rows("unlearning", model, tokenizer, [row.input_ids for row in every], max_length=max_length)
    changed = (row is not None and row.asked_otherwise for row in encoded["forget"])
    check_triggers("unlearning", tokenizer, forget, changed)
    if message := cut_warning(
        "unlearning", Cuts.of(encoded["forget"]) + Cuts.of(encoded["retain"]), max_length=max_length
    ):
        tracker.warn(message)
    padded = batching(model, pad_token_id=tokenizer.pad_token_id).right
    return EditRows(
        _weighted("forget", forget, encoded["forget"], files.forget_weights, max_length=max_length),
        _weighted("retain", retain, encoded["retain"], files.retain_weights, max_length=max_length),
        tokenizer.pad_token_id,
        padded,
    )


def _weighted(
    group: str, records: Sequence[Record], encoded: Sequence[Encoded | None], path: Path, *, max_length: int
) -> list[WeightedRow]:
    left_out = {record.id for record, row in zip(records, encoded, strict=True) if row is None}
    values = read_weights(path, [record.id for record in records], optional=left_out)
    rows = [
        WeightedRow(record.id, value, row)
        for record, row, value in zip(records, encoded, values, strict=True)
        if row is not None
    ]
    if not rows:
        raise DataError(
            f"unlearning: need {group} rows whose instruction leaves room for a response in max_length={max_length} "
            f"tokens, got {len(records)} rows and none that does. Pass max_length=..."
        )
    kept = [row for row in rows if row.weight > 0]
    if not kept:
        raise DataError(
            f"unlearning: need a weight above 0 for one of the {len(rows)} {group} rows at least, got 0 for all of "
            f"them in {path}. Change the weights (mapping=...), or take the rows out of the pack"
        )
    return kept
