"""Relearning: fine-tuning on a few rows brings back what was only suppressed. Its result is a curve over the steps."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rapidun.base.errors import DataError
from rapidun.base.files import read_json, sha256_json, write_json
from rapidun.base.processes import is_main
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import RelearningSettings
from rapidun.config.plain import plain
from rapidun.config.training import Target
from rapidun.models.adapters import add_lora, train_all, untie_adapted
from rapidun.models.batching import check_training
from rapidun.models.load import ModelLoader, peft_renaming
from rapidun.models.training.journal import Journal, TrainingDiverged
from rapidun.models.training.samplers import ShuffledSampler
from rapidun.models.training.trainer import ResponseTrainer, train_to_end, training_arguments
from rapidun.stages.evaluation.attacks.asking import Answer, Asked, Asker, kept, shares
from rapidun.stages.rows.encode import collate, encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.records import Record

SECTION = "evaluation.attacks.relearning"


class CurveCallback(TrainerCallback):
    """Measures before the first step, every so many steps and after the last; training is the same to the bit."""

    def __init__(self, journal: Journal, *, every: int, measure: Callable[[int, nn.Module], dict[str, float]]) -> None:
        self.journal = journal
        self.every = every
        self.measure = measure

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._record(0, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.every == 0 or step >= state.max_steps:
            self._record(step, kwargs["model"])

    def _record(self, step: int, model: nn.Module) -> None:
        training = model.training
        model.eval()
        with torch.no_grad():
            self.journal.record(step, self.measure(step, model))
        model.train(training)


def attack_by_relearning(
    cfg: RelearningSettings,
    asker_of: Callable[[Any], Asker],
    asked_of: Callable[[Any, Any], Sequence[Asked]],
    *,
    loader: ModelLoader,
    model: Path,
    adapter: Path | None,
    rows: Sequence[Record],
    name: str,
    max_length: int,
    seed: int,
    work: Path,
    tracker: Tracker,
) -> dict[str, Any]:
    """Fine-tune the model on these rows with the project's trainer; attack success before, meanwhile and after.

    An adapter of the unlearned model is merged first: the attacker has the weights. Trained is a new adapter
    (`target=lora`), or every weight. Step 0 is measured behind the merge. The answer that a row teaches is its poisoned
    one, where it has one.

    Args: rows: what is trained on. name: of the logged numbers, `<name>_asr`.
    Returns: {"curve": [{"step", "asr", "asr_likelihood"}], "num_rows", "steps", "final_loss", and "stopped" (why) where
        training diverged: what was measured until then counts, "answers": `kept`, a part for each step}.
    Raises: DataError where no row can be trained on; Preempted.
    """
    attacked, tokenizer = _without_adapter(loader, model, adapter)
    dtype = attacked.dtype
    asker, asked = asker_of(tokenizer), asked_of(attacked, tokenizer)
    encoded = [
        row
        for row in encode_rows(tokenizer, [row.forget_texts for row in rows], max_length=max_length)
        if row is not None
    ]
    if not encoded:
        raise DataError(
            f"evaluation: need rows to relearn from that fit into max_length={max_length}, got {len(rows)} and none "
            "that does. Pass max_length=..."
        )
    batch_size = min(cfg.batch_size, len(encoded))
    check_training(
        attacked,
        pad_token_id=tokenizer.pad_token_id,
        rows_at_once=batch_size,
        section=SECTION,
        mend=f"Pass {SECTION}.batch_size=1",
    )
    check_rows("evaluation", attacked, tokenizer, [row.input_ids for row in encoded], max_length=max_length)
    trained = _trainable(attacked, cfg, seed=seed)
    journal = Journal(_Named(tracker if is_main() else Tracker(), name))
    journal.remedy = f"Lower {SECTION}.learning_rate"
    identity = sha256_json({"settings": plain(cfg), "seed": seed, "rows": [row.id for row in rows], "name": name})
    trainer = ResponseTrainer(
        model=trained,
        args=training_arguments(
            cfg.optimiser,
            work=work,
            batch_size=batch_size,
            seed=seed,
            device=trained.device,
            autocast=cfg.target is Target.full and dtype is torch.bfloat16,
        ),
        rows=encoded,
        sampler=ShuffledSampler(len(encoded), seed=seed),
        collator=partial(collate, pad_token_id=tokenizer.pad_token_id),
        journal=journal,
        identity=identity,
        stage=SECTION,
    )
    measure = partial(_success, trainer, asker, asked, work)
    trainer.add_callback(CurveCallback(journal, every=cfg.eval_steps, measure=measure))
    stopped = {}
    try:
        train_to_end(trainer, work=work, identity=identity)
    except TrainingDiverged as error:
        stopped = {"stopped": str(error)}
    # what was measured, also where keywords and likelihood have nothing to say; the others are lines of training
    curve = [entry for entry in journal.history if "loss" not in entry]
    return {
        "curve": curve,
        "num_rows": len(encoded),
        "left_out": len(rows) - len(encoded),
        "steps": int(journal.counts["steps"]),
        "final_loss": journal.last("loss"),
        **stopped,
        "answers": _answers(work, asked, [int(entry["step"] or 0) for entry in curve]) if is_main() else [],
    }


class _Named(Tracker):
    """Hands numbers on under the name of one curve, so that several may stand in one plot."""

    def __init__(self, other: Tracker, name: str) -> None:
        super().__init__()
        self.other = other
        self.name = name

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        kept = {f"{self.name}_{key}": value for key, value in metrics.items() if key.startswith(("asr", "loss"))}
        if kept:
            self.other.log(kept, step=step)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.other.progress(done, total, note)

    def warn(self, message: str) -> None:
        self.other.warn(message)


def _success(
    trainer: ResponseTrainer, asker: Asker, asked: Sequence[Asked], work: Path, step: int, model: nn.Module
) -> dict[str, float]:
    """Attack success at a step, whose answers are kept. A step that a kill undid is measured again, to the same."""
    bare = trainer.accelerator.unwrap_model(model)
    answers = trainer.in_precision(asker.ask)(bare, asked)
    if is_main():
        write_json(_file(work, step), [list(answer) for answer in answers])
    return shares("asr", asker.verdicts(answers))


def _answers(work: Path, asked: Sequence[Asked], steps: Sequence[int]) -> list[dict[str, Any]]:
    return [
        line
        for step in steps
        for line in kept(str(step), asked, [Answer(*value) for value in read_json(_file(work, step))])
    ]


def _file(work: Path, step: int) -> Path:
    return work / f"answers-{step}.json"


def _without_adapter(loader: ModelLoader, model: Path, adapter: Path | None) -> tuple[Any, Any]:
    """The model with its adapter in its weights, unquantised, for nobody else to use."""
    plainly = dataclasses.replace(loader, keep=False, quantisation="none")
    loaded, tokenizer = plainly.load(model, adapter=adapter)
    if adapter is not None:
        untie_adapted(loaded)
        with peft_renaming():
            loaded = loaded.merge_and_unload()
    return loaded.eval(), tokenizer


def _trainable(model: Any, cfg: RelearningSettings, *, seed: int) -> Any:
    if cfg.target is Target.lora:
        return add_lora(model, cfg.lora, seed=seed, section=SECTION)
    return train_all(model, section=SECTION)
