"""The model fine-tuned on the poisoned responses: an artifact of its own, so that a sweep over the scale trains once.

Trained as any other: transformers' Trainer, checkpoints, exact resume. loss = mean_i w_i l_i(poisoned) over the rows of
an optimiser step; rows of weight 0 are not there.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rapidun.base.files import sha256_file, sha256_json
from rapidun.base.processes import is_main
from rapidun.base.tracker import Tracker
from rapidun.config.plain import plain
from rapidun.config.training import Target
from rapidun.config.unlearning import UnlearningConfig
from rapidun.models.adapters import (
    add_lora,
    confirm_adapter,
    is_quantised,
    prepare_quantised,
    save_adapter,
    save_model,
    train_all,
)
from rapidun.models.batching import check_training
from rapidun.models.load import ModelLoader
from rapidun.models.packed import cross_entropy
from rapidun.models.selfcheck import a_few
from rapidun.models.training.forward import forward_packed
from rapidun.models.training.journal import Journal
from rapidun.models.training.samplers import ShuffledSampler
from rapidun.models.training.trainer import ResponseTrainer, train_to_end, training_arguments
from rapidun.stages.recipe import without
from rapidun.stages.rows.encode import collate
from rapidun.stages.unlearning.edits.rows import EditFiles, WeightedRow, read_edit_rows


class WeightedTrainer(ResponseTrainer):
    """loss = mean_i w_i l_i over the examples of an optimiser step."""

    def mean_loss(self, model: nn.Module, inputs: dict[str, Tensor], num_examples: int) -> tuple[Tensor, Tensor]:
        tokens = forward_packed(model, inputs)
        return (inputs["weights"] * cross_entropy(tokens)).sum() / num_examples, tokens.logits


def collate_weighted(rows: Sequence[WeightedRow], *, pad_token_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels: [B, T]; weights: [B] float32."""
    batch: dict[str, Tensor] = {}
    batch |= collate([row.encoded for row in rows], pad_token_id=pad_token_id)
    batch["weights"] = torch.tensor([row.weight for row in rows], dtype=torch.float32)
    return batch


def run_task_model(
    cfg: UnlearningConfig, files: EditFiles, *, loader: ModelLoader, max_length: int, seed: int, tracker: Tracker
) -> dict[str, Any]:
    """Fine-tune towards the poison: out/adapter (target=lora), or out/model (target=full), float32 whatever the model's
    type, since the difference from the start would be lost in bfloat16's rounding.

    Several processes train together; the first writes, and speaks to its tracker. The loader gets its model back.

    Returns: task_steps, task_final_loss.
    Raises: DataError, ConfigError, ModelError; Preempted and Pruned (see train_to_end), with nothing written.
    """
    try:
        return _fine_tune(cfg, files, loader, max_length, seed, tracker if is_main() else Tracker())
    finally:
        loader.hand_back()


def _fine_tune(
    cfg: UnlearningConfig, files: EditFiles, loader: ModelLoader, max_length: int, seed: int, tracker: Tracker
) -> dict[str, Any]:
    model, tokenizer = loader.load(files.model)
    dtype = model.dtype
    rows = read_edit_rows(model, tokenizer, files, max_length=max_length, tracker=tracker).forget
    model = _trainable(model, cfg, seed=seed)
    check_training(
        model,
        pad_token_id=tokenizer.pad_token_id,
        rows_at_once=cfg.forget_per_step,
        section="unlearning",
        mend="Pass unlearning.forget_per_step=1",
    )
    inputs = [files.forget, files.retain, files.forget_weights, files.retain_weights]
    read = {name: value for name, value in plain(cfg).items() if name in cfg.objective.traits.reads}
    identity = sha256_json(
        {
            "task_model": without(read, "save_steps", "gradient_checkpointing"),
            "seed": seed,
            "max_length": max_length,
            "inputs": [sha256_file(path) for path in inputs],
        }
    )
    journal = Journal(tracker)
    trainer = WeightedTrainer(
        model=model,
        args=training_arguments(
            cfg,
            work=files.work,
            batch_size=cfg.forget_per_step,
            seed=seed,
            device=model.device,
            autocast=cfg.target is Target.full and dtype is torch.bfloat16,
        ),
        rows=rows,
        sampler=ShuffledSampler(len(rows), seed=seed),
        collator=partial(collate_weighted, pad_token_id=tokenizer.pad_token_id),
        journal=journal,
        identity=identity,
        stage="unlearning",
    )
    train_to_end(trainer, work=files.work, identity=identity)
    model.eval()
    if is_main():
        if cfg.target is Target.lora:
            few = a_few([row.encoded for row in rows])
            save_adapter(model, files.out / "adapter", base=files.model, over=loader.over_at(files.model))
            confirm_adapter(model, files.out / "adapter", rows=few, section="unlearning", say=tracker.warn)
        else:
            save_model(model, tokenizer, files.out / "model")
    return {"task_steps": int(journal.counts["steps"]), "task_final_loss": journal.last("loss")}


def _trainable(model: Any, cfg: UnlearningConfig, *, seed: int) -> Any:
    if cfg.target is Target.lora:
        if is_quantised(model):
            model = prepare_quantised(model, gradient_checkpointing=cfg.gradient_checkpointing)
        return add_lora(model, cfg.lora, seed=seed, section="unlearning")
    return train_all(model, section="unlearning")
