"""The numbers of one training run, and what ends each of its checkpoints: flushed files, then the marker."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rapidun.base.preemption import Pruned
from rapidun.base.tracker import Tracker
from rapidun.models.training.checkpoints import MARKER, all_checkpoints, remove_checkpoint, seal_checkpoint
from rapidun.models.training.distributed import is_distributed
from rapidun.models.training.samplers import EpochSampler

NUM_KEPT = 2


class TrainingDiverged(FloatingPointError):
    """The loss or the gradient stopped being a finite number, or a loss left its bounds."""


class Journal:
    """The numbers of one training run: handed to the tracker, kept for history.json, restored on resume."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.history: list[dict[str, float | None]] = []
        # sums over the whole run: optimiser steps, clipped steps, and whatever a trainer adds
        self.counts: dict[str, float] = {"steps": 0, "clipped_steps": 0}
        # what else a trainer carries from step to step: JSON values
        self.kept: dict[str, Any] = {}
        # files beside the checkpoints that what is kept refers to: name below the work folder -> SHA-256
        self.beside: dict[str, str] = {}
        # training ended before its last step, as it was asked to: nothing is to be trained any more
        self.ended = False
        # what a divergence says beside its numbers: the rows of the step, the settings to change
        self.suspects: Callable[[], str] | None = None
        self.remedy: str | None = None
        # the tracker gave the run up: training ends with its step, in all processes, and then raises this
        self.pruned: Pruned | None = None

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Keep and log the numbers of a step; one that is not finite is kept as None: no file of JSON holds it."""
        odd = [name for name, value in metrics.items() if not math.isfinite(value)]
        for name in odd:
            self.tracker.warn(f"training: {name} is left out where it is not a finite number, first at step {step}")
        self.history.append({"step": step, **metrics, **dict.fromkeys(odd)})
        if self.pruned is None:
            try:
                self.tracker.log(metrics, step=step)
            except Pruned as pruned:
                self.pruned = pruned

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
        return {"history": self.history, "counts": self.counts, "kept": self.kept, "beside": self.beside}

    def restore(self, state: dict[str, Any]) -> None:
        self.history = list(state["history"])
        self.counts = dict(state["counts"])
        self.kept = dict(state.get("kept", {}))
        self.beside = dict(state.get("beside", {}))

    def diverged(self, what: str, *, step: int, stage: str, work: Path) -> TrainingDiverged:
        """The error that ends a run: what happened, in which rows, what to change, and what is left of the run."""
        rows = "" if self.suspects is None else f". {self.suspects()}"
        good = [folder for folder in all_checkpoints(work) if (folder / MARKER).exists()]
        left = f"The last good checkpoint stays: {good[-1]}" if good else "No checkpoint was saved before it"
        remedy = self.remedy or f"Lower {stage}.learning_rate"
        return TrainingDiverged(f"{stage}: {what} at step {step}{rows}. {remedy}. {left}")


class JournalCallback(TrainerCallback):
    """Hands the Trainer's numbers to the journal, ends each checkpoint with its marker, sets the sampler's epoch."""

    def __init__(self, journal: Journal, *, identity: str, sampler: EpochSampler, stage: str) -> None:
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
        if not logs or "loss" not in logs:
            return  # the summary line at the end of training: the stage writes its own
        norm = logs.get("grad_norm", 0.0)
        if not math.isfinite(logs["loss"]) or not math.isfinite(norm):
            raise self.journal.diverged(
                f"need a finite loss, got loss={logs['loss']} and grad_norm={norm}",
                step=state.global_step,
                stage=self.stage,
                work=Path(str(args.output_dir)),
            )
        self.journal.count("steps", 1)
        self.journal.count("clipped_steps", float(0 < args.max_grad_norm < norm))
        metrics = {name: float(value) for name, value in logs.items() if name != "epoch"}
        self.journal.record(state.global_step, metrics)
        self.journal.tracker.progress(state.global_step, state.max_steps, f"loss {logs['loss']:.3f}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if is_distributed():
            torch.distributed.barrier()  # every process has written its random state
        if not state.is_world_process_zero:
            return
        work = Path(str(args.output_dir))
        folder = work / f"checkpoint-{state.global_step}"
        # the Trainer's pickled arguments: nothing reads them, and they hold paths
        (folder / "training_args.bin").unlink(missing_ok=True)
        marker = {
            "identity": self.identity,
            "step": state.global_step,
            "finished": self.journal.ended or state.global_step >= state.max_steps,
            "journal": self.journal.state(),
        }
        seal_checkpoint(folder, marker)
        for old in all_checkpoints(work)[:-NUM_KEPT]:
            remove_checkpoint(old)
