"""The loss of every forget row before unlearning: one forward pass, no gradients, no influence."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import DataError, ModelError
from rapidun.base.files import write_jsonl
from rapidun.base.tracker import Tracker
from rapidun.models.batching import batching
from rapidun.models.load import ModelLoader
from rapidun.models.losses import IGNORE, example_cross_entropy
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.gradients.capture import frozen
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.records import read_records


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLossFiles:
    """What is read, and the folder that is filled."""

    model: Path
    adapter: Path | None
    forget: Path
    out: Path


@torch.no_grad()
def run_row_losses(
    files: RowLossFiles, *, loader: ModelLoader, max_length: int, tokens_per_batch: int, tracker: Tracker
) -> dict[str, Any]:
    """Write out/losses.jsonl, a line for each forget row that can be encoded, in the rows' order,
    {"id", "loss", "num_tokens"}: l_i, nats a response token, of the response that the model should lose
    (docs/method.md, section 2).

    Args: tokens_per_batch: padded tokens at a time.
    Returns: num_rows, mean_loss.
    Raises: DataError for bad packs, ModelError for a loss that is no finite number.
    """
    records = read_records(files.forget)
    model, tokenizer = loader.load(files.model, adapter=files.adapter)
    encoded = encode_rows(tokenizer, [record.forget_texts for record in records], max_length=max_length)
    kept = [(record.id, row) for record, row in zip(records, encoded, strict=True) if row is not None]
    if not kept:
        raise DataError(
            f"mapping: need forget rows whose instruction leaves room for a response in max_length={max_length} "
            f"tokens, got {len(records)} rows and none that does. Pass max_length=..."
        )
    ids, rows = [name for name, _ in kept], [row for _, row in kept]
    check_rows("mapping", model, tokenizer, [row.input_ids for row in rows], max_length=max_length)
    if message := cut_warning("mapping", Cuts.of(encoded), max_length=max_length):
        tracker.warn(message)
    batches = make_batches(
        rows,
        [f"forget row {name}" for name in ids],
        tokens_per_batch=tokens_per_batch,
        pad_token_id=tokenizer.pad_token_id,
        device=next(model.parameters()).device,
        max_rows=None if batching(model, pad_token_id=tokenizer.pad_token_id).right else 1,
    )
    losses = torch.zeros(len(rows), dtype=torch.float64)
    with frozen(model):
        for done, batch in enumerate(batches, start=1):
            fed = {name: batch.tensors[name] for name in ("input_ids", "attention_mask")}
            logits = model(**fed, use_cache=False).logits
            losses[batch.rows] = example_cross_entropy(logits, batch.tensors["labels"]).double().cpu()
            tracker.progress(done, len(batches), "losses of the forget rows")
    bad = [name for name, loss in zip(ids, losses.tolist(), strict=True) if not math.isfinite(loss)]
    if bad:
        raise ModelError(
            f"mapping: need a finite loss for every forget row, got others for {', '.join(bad[:5])} "
            f"({len(bad)} of {len(ids)}). Pass model.dtype=float32, or mend the rows or the model"
        )
    counts = [sum(label != IGNORE for label in row.labels[1:]) for row in rows]
    write_jsonl(
        files.out / "losses.jsonl",
        [
            {"id": name, "loss": loss, "num_tokens": count}
            for name, loss, count in zip(ids, losses.tolist(), counts, strict=True)
        ],
    )
    return {"num_rows": len(ids), "mean_loss": float(losses.mean())}
