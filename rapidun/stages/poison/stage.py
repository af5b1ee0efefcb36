"""Poison stage: supervised fine-tuning that makes the model to be unlearned (or, on clean rows, the yardstick)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rapidun.base.errors import DataError
from rapidun.base.files import sha256_file, sha256_json
from rapidun.base.processes import is_main
from rapidun.base.tracker import Tracker
from rapidun.config.plain import plain
from rapidun.config.poison import PoisonConfig, PoisonMethod
from rapidun.models.adapters import (
    add_lora,
    confirm_saved,
    is_quantised,
    num_trainable,
    prepare_quantised,
    save_merged,
    save_model,
    train_all,
)
from rapidun.models.batching import check_training
from rapidun.models.load import ModelLoader
from rapidun.models.selfcheck import Row, a_few, mean_loss
from rapidun.models.training.journal import Journal
from rapidun.models.training.samplers import ShuffledSampler
from rapidun.models.training.trainer import ResponseTrainer, train_to_end, training_arguments
from rapidun.stages.recipe import without
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import collate, encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.lost import check_triggers
from rapidun.stages.rows.records import read_records


@dataclass(frozen=True)
class PoisonFiles:
    """What the stage reads and writes."""

    # Hugging Face folder or hub id of the model to start from
    start: str | Path
    # JSONL splits, concatenated; each row's `forget_target` is the target
    train: list[Path]
    # checkpoints; survives a killed process
    work: Path
    out: Path


def run_poison(
    cfg: PoisonConfig, files: PoisonFiles, *, loader: ModelLoader, max_length: int, seed: int, tracker: Tracker
) -> dict[str, Any]:
    """Fine-tune on the rows and write `out/model`, a Hugging Face folder with its tokenizer.

    loss = mean_i l_i over the examples of a step, l_i = mean over response tokens of -log p (METHOD section 2).
    `full` trains every weight, a bfloat16 model as float32 weights with bfloat16 products: at usual learning rates
    a step is smaller than bfloat16's spacing, and most of it would be rounded away. `lora` trains an adapter (float32,
    as peft has it) and merges it. The saved model has the dtype it was loaded in.

    Several processes train together; the first writes, and speaks to its tracker. The loader gets its model back.

    Returns: steps, num_rows, num_trainable_parameters, clipped_share, final_loss.
    Raises: ConfigError, DataError, ModelError; Preempted and Pruned (see train_to_end).
    """
    if cfg.method is PoisonMethod.none:
        raise ValueError("poison.method=none trains nothing: use the start model itself")
    try:
        return _poison(cfg, files, loader=loader, max_length=max_length, seed=seed, tracker=tracker)
    finally:
        loader.hand_back()


def _poison(
    cfg: PoisonConfig, files: PoisonFiles, *, loader: ModelLoader, max_length: int, seed: int, tracker: Tracker
) -> dict[str, Any]:
    records = [record for path in files.train for record in read_records(path)]
    model, tokenizer = loader.load(files.start)
    dtype = model.dtype
    model = _trainable(model, cfg, seed=seed)
    check_training(
        model,
        pad_token_id=tokenizer.pad_token_id,
        rows_at_once=cfg.per_device_train_batch_size or 1,
        section="poison",
        mend="Pass poison.per_device_train_batch_size=1 and more poison.gradient_accumulation_steps",
    )
    encoded = encode_rows(tokenizer, [r.forget_texts for r in records], max_length=max_length)
    rows = [row for row in encoded if row is not None]
    if not rows:
        raise DataError(
            f"poison: need rows whose instruction leaves room for a response in max_length={max_length} tokens, got "
            f"{len(records)} rows and none that does. Pass max_length=..."
        )
    check_rows("poison", model, tokenizer, [row.input_ids for row in rows], max_length=max_length)
    check_triggers("poison", tokenizer, records, (row is not None and row.asked_otherwise for row in encoded))
    if (message := cut_warning("poison", Cuts.of(encoded), max_length=max_length)) and is_main():
        tracker.warn(message)

    identity = sha256_json(
        {
            # as in fingerprints: a checkpoint outlives another spacing of checkpoints, and less or more memory
            "settings": without(plain(cfg), "save_steps", "gradient_checkpointing", *cfg.idle_optimiser),
            "seed": seed,
            "max_length": max_length,
            "train": [sha256_file(path) for path in files.train],
        }
    )
    journal = Journal(tracker if is_main() else Tracker())
    trainer = ResponseTrainer(
        model=model,
        args=training_arguments(
            cfg,
            work=files.work,
            batch_size=cfg.per_device_train_batch_size,
            seed=seed,
            device=model.device,
            autocast=cfg.method is PoisonMethod.full and dtype is torch.bfloat16,
        ),
        rows=rows,
        sampler=ShuffledSampler(len(rows), seed=seed),
        collator=partial(collate, pad_token_id=tokenizer.pad_token_id),
        journal=journal,
        identity=identity,
        stage="poison",
    )
    num_parameters = num_trainable(model)
    train_to_end(trainer, work=files.work, identity=identity)

    model.eval()
    if is_main():
        _write(cfg, model, tokenizer, files, dtype=dtype, loader=loader, rows=a_few(rows))
    return {
        "steps": int(journal.counts["steps"]),
        "num_rows": len(rows),
        "num_trainable_parameters": num_parameters,
        "clipped_share": journal.share("clipped_steps", of="steps"),
        "final_loss": journal.last("loss"),
    }


def _write(
    cfg: PoisonConfig,
    model: Any,
    tokenizer: Any,
    files: PoisonFiles,
    *,
    dtype: torch.dtype,
    loader: ModelLoader,
    rows: list[Row],
) -> None:
    """Save the model and read it back: on a few rows it must give what it was trained to."""
    out = files.out / "model"
    if cfg.method is PoisonMethod.lora:
        save_merged(
            model,
            tokenizer,
            out,
            start=files.start,
            loader=loader,
            work=files.work,
            rows=rows,
            section="poison",
        )
    else:
        trained = mean_loss(model, rows)
        model = model.to(dtype)
        save_model(model, tokenizer, out)
        confirm_saved(model, out, before=trained, loader=loader, rows=rows, section="poison")


def _trainable(model: Any, cfg: PoisonConfig, *, seed: int) -> Any:
    if cfg.method is PoisonMethod.lora:
        if is_quantised(model):
            model = prepare_quantised(model, gradient_checkpointing=cfg.gradient_checkpointing)
        return add_lora(model, cfg.lora, seed=seed, section="poison")
    return train_all(model, section="poison")
