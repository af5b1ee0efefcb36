"""What is measured while unlearning goes on, and what follows from it: which weights are kept, when it is enough."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rapidun.base.processes import share
from rapidun.config.training import Stop
from rapidun.models.training.journal import Journal
from rapidun.stages.unlearning.best import BestKeeper

STOPPED_AT = "stopped_at"


class ValidationCallback(TrainerCallback):
    """Measures on validation rows before the first step, every so many steps, and after the last step.

    Several processes go by the numbers of the first.

    Args:
        eval_steps: between losses on validation rows; 0 = none but those beside an attack.
        measure: gives them, of a model; `with_perplexity` beside an attack.
        eval_asr, attack: the same for attack success, which always has the losses of the same step beside it.
        best: keeps the weights of the best evaluation. stop: ends training where it holds after a step.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        eval_steps: int,
        measure: Callable[..., dict[str, float]],
        eval_asr: int = 0,
        attack: Callable[[nn.Module], dict[str, float]] | None = None,
        best: BestKeeper | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.journal = journal
        self.eval_steps = eval_steps
        self.measure = measure
        self.eval_asr = eval_asr
        self.attack = attack
        self.best = best
        self.stop = stop

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step == 0:
            self._record(state, control, kwargs["model"])  # type: ignore[arg-type]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._record(state, control, kwargs["model"])  # type: ignore[arg-type]

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        # comes after the journal's, which has written the marker
        if self.best is not None:
            self.best.prune()

    def _record(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        step, is_last = state.global_step, state.global_step >= state.max_steps
        validates, attacks = (
            every > 0 and (step % every == 0 or is_last) for every in (self.eval_steps, self.eval_asr)
        )  # fmt: skip
        if not (validates or attacks):
            return
        training = model.training
        model.eval()
        with torch.no_grad():
            found = self.measure(model, with_perplexity=attacks)
            if attacks and self.attack is not None:
                found |= self.attack(model)
            self.journal.record(step, found)
        model.train(training)
        if self.best is None and self.stop is None:
            return
        found = share(found)
        if self.best is not None:
            self.best.consider(step, found, model)
        if self.stop is not None and step > 0 and self.stop.holds(found):
            self.journal.kept[STOPPED_AT] = step
            self.journal.ended = True
            control.should_training_stop = True
