"""What poison and unlearning share over transformers' Trainer: arguments, a journal, checkpoints, exact resume.

A run killed at any moment and started again ends with the same weights, bit for bit, as a run left alone (CPU,
float32): the Trainer's checkpoint holds weights, optimiser, schedule and random states, the samplers are functions
of (seed, epoch), and the journal (history, counts) is written with the marker that ends a checkpoint. So does one
that was asked to stop (preemption.py), after a checkpoint at the end of its step. Several processes share the rows of
a step out among them (samplers.py); the first one writes.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from rapidun.base.files import read_json
from rapidun.base.preemption import Preempted, Pruned, checkpointing, stop_requested
from rapidun.base.processes import collective, is_main, share
from rapidun.config.parts import OptimiserSettings
from rapidun.models.load import peft_renaming
from rapidun.models.losses import IGNORE
from rapidun.models.packed import cross_entropy
from rapidun.models.packing import switched
from rapidun.models.rng import mix
from rapidun.models.training.checkpoints import MARKER, checkpoint_step, newest_checkpoint
from rapidun.models.training.distributed import largest, total
from rapidun.models.training.forward import bfloat16_copies, forward_packed, layout_of
from rapidun.models.training.journal import Journal, JournalCallback, TrainingDiverged
from rapidun.models.training.samplers import EpochSampler, RowDataset, StepShards, num_batches

# what processes tell each other at the end of a step
GO_ON, PREEMPTED, PRUNED = 0.0, 1.0, 2.0

Found = TypeVar("Found")


def training_arguments(
    settings: OptimiserSettings,
    *,
    work: Path,
    batch_size: int | None,
    seed: int,
    device: torch.device,
    autocast: bool = False,
) -> TrainingArguments:
    """TrainingArguments of one of our stages.

    Weights train in the dtype they have, or with `autocast` in float32 with products in bfloat16; one log line a
    step; nothing is reported anywhere but to our tracker; one device a process (torchrun's variables say how many).
    """
    transformers_logging.disable_progress_bar()
    rate, epochs, accumulation = settings.learning_rate, settings.num_train_epochs, settings.gradient_accumulation_steps
    # what may be left to the model's size is settled before the first stage
    assert rate is not None and epochs is not None and accumulation is not None and batch_size is not None
    args = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=epochs,
        max_steps=settings.max_steps if settings.max_steps > 0 else -1,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,  # below 1: a share of the steps
        optim=settings.optimizer.traits.optim,
        optim_args=f"momentum={settings.momentum!r}" if settings.momentum else None,
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
        sampler: EpochSampler,
        collator: Any,
        journal: Journal,
        identity: str,
        stage: str,
    ) -> None:
        self._row_sampler = sampler
        self.journal = journal
        self.stop: Preempted | Pruned | None = None
        # global steps after which the processes agreed whether to go on, and that a checkpoint holds
        self._agreed_at = self._saved_at = -1
        self._step_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if args.world_size > 1:
            args.gradient_accumulation_steps = num_batches(
                self._step_size, world_size=args.world_size, batch_size=args.per_device_train_batch_size
            )
        if args.device.type == "cpu":
            # accelerate would put autocast around the model, and make all logits float32: see
            # compute_loss_context_manager
            args.mixed_precision = "no"
        config = getattr(model, "config", None)
        use_cache = getattr(config, "use_cache", None)
        callback = JournalCallback(journal, identity=identity, sampler=sampler, stage=stage)
        super().__init__(
            model=model, args=args, train_dataset=RowDataset(rows), data_collator=collator, callbacks=[callback]
        )
        if args.world_size > 1:
            # the Trainer seeds every process alike, which would drop the same units for different rows
            torch.manual_seed(mix(args.seed, args.process_index))
        # the Trainer switches the cache off in the config, which would be saved with the model
        if use_cache is not None:
            config.use_cache = use_cache  # type: ignore[union-attr]
        self.remove_callback(PrinterCallback)
        # the losses here are our own, whatever keyword arguments the model takes
        self.model_accepts_loss_kwargs = False
        # tried out before the model is wrapped, where all processes stand
        layout_of(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._row_sampler

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        shards = StepShards(
            self._row_sampler,
            step_size=self._step_size,
            batch_size=self.args.per_device_train_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        # not through accelerate, which would deal batches out a second time
        return DataLoader(
            self.train_dataset,
            batch_sampler=shards,
            collate_fn=self._collate,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _collate(self, rows: list[Any]) -> dict[str, Tensor]:
        if rows == [None]:
            one = torch.ones((1, 1), dtype=torch.long)
            return {"idle": one, "input_ids": 0 * one, "attention_mask": one, "labels": IGNORE * one}
        return self.data_collator(rows)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        number = sum(self.num_examples_in(batch) for batch in batches if "idle" not in batch)
        return batches, int(total([number], device)[0])

    def num_examples_in(self, batch: dict[str, Tensor]) -> int:
        """Examples that the mean of the loss runs over."""
        return len(batch["labels"])

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        stack = super().compute_loss_context_manager()
        if self.args.bf16 and self.args.device.type == "cpu":
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            # layers that are run again in the backward pass would find the weights themselves; FSDP's are in pieces
            if not self.args.activation_checkpointing and not self.is_fsdp_enabled:
                stack.enter_context(bfloat16_copies())
        return stack

    def in_precision(self, call: Callable[..., Found]) -> Callable[..., Found]:
        """The call in the precision of a training pass."""

        def within(*args: Any, **kwargs: Any) -> Found:
            with self.compute_loss_context_manager():
                return call(*args, **kwargs)

        return within

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        # the backward pass runs layers again under gradient checkpointing
        with switched(self.accelerator.unwrap_model(model)):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "idle" in inputs:
            # no response token: every parameter takes part in the exchange all the same
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            loss = 0.0 * logits.sum()
        else:
            loss, logits = self.mean_loss(model, inputs, num_items_in_batch or self.num_examples_in(inputs))
        if self.args.world_size > 1:
            # gradients, and the logged loss, are averaged over processes; each has its part of a sum
            loss = loss * self.args.world_size
        return (loss, {"logits": logits}) if return_outputs else loss

    def mean_loss(self, model: nn.Module, inputs: dict[str, Tensor], num_examples: int) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the step's mean over `num_examples`, and the logits [N, V] at response tokens."""
        tokens = forward_packed(model, inputs)
        return cross_entropy(tokens).sum() / num_examples, tokens.logits

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer calls this at the end of each step (and epoch): last, see whether training should stop."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.state.global_step != self._agreed_at:
            self._agreed_at = self.state.global_step
            self.agree_to_stop()
            if self.stop is not None:
                self.control.should_training_stop = True

    def agree_to_stop(self) -> None:
        """Set `stop` in all processes if one was asked to stop (a checkpoint is there then) or its run was given up."""
        if self.stop is not None:
            return
        pruned, reason = self.journal.pruned, stop_requested()
        asked = PRUNED if pruned else PREEMPTED if reason else GO_ON
        value, step = (pruned.value, float(pruned.step)) if pruned else (-math.inf, -math.inf)
        asked, value, step = largest([asked, value, step], self.args.device)
        if asked == PRUNED:
            self.stop = pruned or Pruned(value, int(step))
        elif asked == PREEMPTED:
            self.save_now()
            self.stop = Preempted(reason or "another process was asked to stop")

    def save_now(self) -> None:
        """Save a checkpoint of this step, whatever save_steps says, unless there is one."""
        if self.state.global_step not in (0, self._saved_at):
            self._save_checkpoint(self.model, None)
            self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self._saved_at = self.state.global_step


def train_to_end(trainer: ResponseTrainer, *, work: Path, identity: str) -> None:
    """Train, from the newest complete checkpoint in `work` if there is one made by the same settings.

    A checkpoint without its marker (the process died while writing it), of another identity, or with damaged files is
    deleted; of the latter the tracker is told.
    Afterwards the trainer's model holds the final weights.
    Raises: Preempted when the run was asked to stop, after a checkpoint at the end of its step (none before the first
        step); Pruned when the tracker gave it up.
    """
    ended_by: BaseException | None = None
    with checkpointing(), collective(), peft_renaming():
        checkpoint = _newest_for_all(work, identity=identity, tell=trainer.journal.tracker.warn)
        try:
            trainer.agree_to_stop()
            if trainer.stop is None:
                _train(trainer, checkpoint)
                # asked after the last step: the end of training is kept as well
                trainer.agree_to_stop()
            ended_by = trainer.stop
        except TrainingDiverged as error:
            # the numbers are those of all processes: each raises this at the same step, and may go on afterwards
            ended_by = error
    if ended_by is not None:
        raise ended_by


def _train(trainer: ResponseTrainer, checkpoint: Path | None) -> None:
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


def _newest_for_all(work: Path, *, identity: str, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from: the first process looks, and deletes what cannot be used."""
    found = newest_checkpoint(work, identity=identity, tell=tell) if is_main() else None
    step = share(None if found is None else checkpoint_step(found))
    return None if step is None else work / f"checkpoint-{step}"
