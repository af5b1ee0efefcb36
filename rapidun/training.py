"""What poison and unlearning share over transformers' Trainer: arguments, a journal, checkpoints, exact resume.

A run killed at any moment and started again ends with the same weights, bit for bit, as a run left alone (CPU,
float32): the Trainer's checkpoint holds weights, optimiser, schedule and random states, the samplers are functions
of (seed, epoch), and the journal (history, counts) is written with the marker that ends a checkpoint.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from rapidun.checkpoints import MARKER, all_checkpoints, flush_files, newest_checkpoint, remove_checkpoint
from rapidun.files import read_json, sync, write_json
from rapidun.losses import example_cross_entropy
from rapidun.schema import OptimiserSettings
from rapidun.tracking import Tracker

NUM_KEPT = 2


class TrainingDiverged(FloatingPointError):
    """The loss or the gradient stopped being a finite number."""


class EpochAware(Protocol):
    def set_epoch(self, epoch: int) -> None: ...


class RowDataset(Dataset[Any]):
    """Rows kept in a list; the collator turns indices' rows into tensors."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def permutation(num_rows: int, *, seed: int, stream: int, part: int) -> list[int]:
    """The order of one pass over rows, a function of (seed, stream, pass) alone.

    Args:
        num_rows: rows to order. seed: of the run. stream: which group of rows. part: which pass over them.
    """
    generator = torch.Generator().manual_seed(_mix(seed, stream, part))
    return torch.randperm(num_rows, generator=generator).tolist()


def _mix(*values: int) -> int:
    # splitmix64 over the values: neighbouring seeds and passes give unrelated generators
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1  # manual_seed takes an int64


class ShuffledSampler(Sampler[int]):
    """Every row once per epoch, in an order that (seed, epoch) fixes."""

    def __init__(self, num_rows: int, *, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Any:
        return iter(permutation(self.num_rows, seed=self.seed, stream=0, part=self.epoch))


class Journal:
    """The numbers of one training run: handed to the tracker, kept for history.json, restored on resume."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.history: list[dict[str, float]] = []
        # sums over the whole run: optimiser steps, clipped steps, and whatever a trainer adds
        self.counts: dict[str, float] = {"steps": 0, "clipped_steps": 0}

    def record(self, step: int, metrics: dict[str, float]) -> None:
        self.history.append({"step": step, **metrics})
        self.tracker.log(metrics, step=step)

    def count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0) + value

    def share(self, name: str, of: str) -> float:
        """counts[name] / counts[of], 0 where nothing was counted."""
        total = self.counts.get(of, 0)
        return self.counts.get(name, 0) / total if total else 0.0

    def last(self, name: str) -> float | None:
        """The newest value recorded under a name."""
        return next((entry[name] for entry in reversed(self.history) if name in entry), None)

    def state(self) -> dict[str, Any]:
        return {"history": self.history, "counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        self.history = list(state["history"])
        self.counts = dict(state["counts"])


class JournalCallback(TrainerCallback):
    """Hands the Trainer's numbers to the journal, ends each checkpoint with its marker, sets the sampler's epoch."""

    def __init__(self, journal: Journal, *, identity: str, sampler: EpochAware, stage: str) -> None:
        self.journal = journal
        self.identity = identity
        self.sampler = sampler
        self.stage = stage

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # after a resume accelerate does not reach a sampler behind its skipping and sharding wrappers
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return  # the summary line at the end of training: the stage writes its own
        norm = logs.get("grad_norm", 0.0)
        if not math.isfinite(logs["loss"]) or not math.isfinite(norm):
            raise TrainingDiverged(
                f"{self.stage}: need a finite loss, got loss={logs['loss']} and grad_norm={norm} at step "
                f"{state.global_step}. Lower {self.stage}.learning_rate"
                + (" or set unlearning.loss_cap" if self.stage == "unlearning" else "")
            )
        self.journal.count("steps", 1)
        self.journal.count("clipped_steps", float(0 < args.max_grad_norm < norm))
        metrics = {name: float(value) for name, value in logs.items() if name != "epoch"}
        self.journal.record(state.global_step, metrics)
        self.journal.tracker.progress(state.global_step, state.max_steps, f"loss {logs['loss']:.3f}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its random state
        if not state.is_world_process_zero:
            return
        work = Path(str(args.output_dir))
        folder = work / f"checkpoint-{state.global_step}"
        # the Trainer's pickled arguments: nothing reads them, and they hold paths
        (folder / "training_args.bin").unlink(missing_ok=True)
        flush_files(folder)
        marker = {
            "identity": self.identity,
            "step": state.global_step,
            "finished": state.global_step >= state.max_steps,
            "journal": self.journal.state(),
        }
        write_json(folder / MARKER, marker)
        sync(folder)
        sync(work)
        for old in all_checkpoints(work)[:-NUM_KEPT]:
            remove_checkpoint(old)


def training_arguments(
    settings: OptimiserSettings,
    *,
    work: Path,
    batch_size: int,
    seed: int,
    device: torch.device,
    autocast: bool = False,
) -> TrainingArguments:
    """TrainingArguments of one of our stages.

    Weights train in the dtype they have, or with `autocast` in float32 with products in bfloat16; one log line a
    step; nothing is reported anywhere but to our tracker; one device (several processes, not threads, use several).
    """
    transformers_logging.disable_progress_bar()
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps if settings.max_steps > 0 else -1,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,  # below 1: a share of the steps
        optim="adamw_torch",
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        bf16=autocast,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_steps > 0 else "no",
        save_steps=max(settings.save_steps, 1),
        save_total_limit=None,  # the journal's callback removes old ones, after the new one is complete
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        log_level="error",
    )
    if args.device.type == "cuda" and args.world_size == 1:
        args._n_gpu = 1  # nn.DataParallel would split a micro-batch and break its proportions
    return args


class ResponseTrainer(Trainer):
    """Trainer whose loss is mean_i l_i over the examples of an optimiser step.

    l_i = mean over the response tokens of -log p: each example counts the same, whatever its length (METHOD
    section 2), where the Trainer's own loss counts each token the same. The mean runs over all examples of the
    step, also when the last micro-batch of an epoch is smaller.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        rows: Sequence[Any],
        sampler: Sampler[int],
        collator: Any,
        journal: Journal,
        identity: str,
        stage: str,
    ) -> None:
        self._row_sampler = sampler
        self.journal = journal
        config = getattr(model, "config", None)
        use_cache = getattr(config, "use_cache", None)
        callback = JournalCallback(journal, identity=identity, sampler=sampler, stage=stage)  # type: ignore[arg-type]
        super().__init__(
            model=model, args=args, train_dataset=RowDataset(rows), data_collator=collator, callbacks=[callback]
        )
        # the Trainer switches the cache off in the config, which would be saved with the model
        if use_cache is not None:
            config.use_cache = use_cache  # type: ignore[union-attr]
        self.remove_callback(PrinterCallback)
        # the losses here are our own, whatever keyword arguments the model takes
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._row_sampler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(self.num_examples_in(batch) for batch in batches)

    def num_examples_in(self, batch: dict[str, Tensor]) -> int:
        """Examples that the mean of the loss runs over."""
        return len(batch["labels"])

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = forward_logits(model, inputs)
        losses = example_cross_entropy(logits, inputs["labels"])
        loss = losses.sum() / (num_items_in_batch or len(losses))
        return (loss, {"logits": logits}) if return_outputs else loss


def forward_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """[B, T, V] logits of a right-padded batch."""
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits


def train_to_end(trainer: ResponseTrainer, *, work: Path, identity: str) -> None:
    """Train, from the newest complete checkpoint in `work` if there is one made by the same settings.

    A checkpoint without its marker (the process died while writing it), or of another identity, is deleted.
    Afterwards the trainer's model holds the final weights.
    """
    checkpoint = newest_checkpoint(work, identity=identity)
    if checkpoint is None:
        trainer.train()
        return
    marker = read_json(checkpoint / MARKER)
    trainer.journal.restore(marker["journal"])
    if marker["finished"]:
        # trainer.train would take one more step where max_steps ends within an epoch
        trainer._load_from_checkpoint(str(checkpoint))
        return
    trainer.train(resume_from_checkpoint=str(checkpoint))
