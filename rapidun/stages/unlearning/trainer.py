"""The unlearning loss inside transformers' Trainer: weights, warm-up of the weights, and what is logged."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rapidun.config.unlearning import RetainLoss
from rapidun.models.packed import Packed, cross_entropy
from rapidun.models.training.distributed import total
from rapidun.models.training.forward import forward_packed
from rapidun.models.training.journal import Journal
from rapidun.models.training.trainer import ResponseTrainer
from rapidun.stages.unlearning.objectives.base import (
    Coefficients,
    ForgetOutputs,
    Method,
    Reference,
    Responses,
    weighted_mean,
)
from rapidun.stages.unlearning.objectives.retain import RETAIN_LOSSES
from rapidun.stages.unlearning.rows import CLEAN, POISONED, RETAIN, token_weights_of

# means over the examples of a step, in each line of the journal
TERMS = ("forget_term", "capped_share", "ce_poisoned", "ce_clean", "ce_retain", "retain_term")


class UnlearningTrainer(ResponseTrainer):
    """loss = mean_i(w_i f_i) over the forget and retain examples of an optimiser step.

    The reference model is the model as it was handed over, before the first step: a new adapter changes nothing
    then, so that is the base with the adapter off; for an adapter that is continued it includes what that adapter
    had learnt. Its adapter is kept as a frozen copy and swapped in for the reference's forward pass.
    """

    def __init__(
        self,
        *,
        method: Method,
        coefficients: Coefficients,
        retain_loss: RetainLoss,
        weight_warmup_ratio: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.method = method
        self.coefficients = coefficients
        self.retain_term = RETAIN_LOSSES[retain_loss]
        self.weight_warmup_ratio = weight_warmup_ratio
        self.reference_on_retain = retain_loss is RetainLoss.kl and method.retain
        self.reference: dict[str, Tensor] = {}
        if method.reference is not Reference.none or self.reference_on_retain:
            trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            self.reference = {name: p.detach().clone() for name, p in trained}
        # name -> (sum, number) over the micro-batches of one optimiser step
        self._sums: dict[str, tuple[float, int]] = {}

    def num_examples_in(self, batch: dict[str, Tensor]) -> int:
        return len(batch["forget_weights"]) + len(batch["retain_weights"])

    def warm_up(self, weights: Tensor) -> Tensor:
        """w at this step: 1 + (w - 1) * min(1, step / warm-up steps)."""
        steps = math.ceil(self.weight_warmup_ratio * self.state.max_steps)
        share = min(1.0, self.state.global_step / steps) if steps else 1.0
        # no arithmetic once warm, so that the weights are the given ones to the last bit
        return weights if share == 1.0 else 1.0 + (weights - 1.0) * share

    def reference_tokens(self, model: nn.Module, inputs: dict[str, Tensor], chosen: Tensor) -> Packed:
        """The response tokens of the chosen sequences under the reference model, without gradient."""
        bare = self.accelerator.unwrap_model(model)
        fed = {name: inputs[name][chosen] for name in ("input_ids", "attention_mask", "labels")}
        training = bare.training
        bare.eval()
        with torch.no_grad():
            tokens = forward_packed(bare, fed, parameters=self.reference)
        bare.train(training)
        return tokens

    def mean_loss(self, model: nn.Module, inputs: dict[str, Tensor], num_examples: int) -> tuple[Tensor, Tensor]:
        tokens = forward_packed(model, inputs)
        log_probs = tokens.log_probs()
        plain = losses = cross_entropy(tokens, log_probs)
        if "token_weights" in inputs:
            # what is logged as cross-entropy stays one
            losses = cross_entropy(tokens, log_probs, token_weights_of(inputs))
        part = inputs["part"]

        def responses(kind: int, *, reference: bool) -> Responses | None:
            rows = part == kind
            if not bool(rows.any()):
                return None
            known = self.reference_tokens(model, inputs, rows) if reference else None
            return Responses(losses[rows], tokens.of(rows), known)

        on_forget = self.method.reference is Reference.logits
        poisoned = responses(POISONED, reference=on_forget)
        clean = responses(CLEAN, reference=on_forget)
        retain = responses(RETAIN, reference=self.reference_on_retain)
        loss = torch.zeros((), device=losses.device)
        # one of several processes may have rows of one group only
        if len(inputs["forget_weights"]):
            terms = self.method.terms(ForgetOutputs(poisoned, clean, inputs["has_clean"]), self.coefficients)
            loss = weighted_mean(terms.values, self.warm_up(inputs["forget_weights"]), num_examples=num_examples)
            self._add("forget_term", terms.values)
            self._add("capped_share", terms.capped.float())
        for name, kind in (("ce_poisoned", POISONED), ("ce_clean", CLEAN), ("ce_retain", RETAIN)):
            if bool((part == kind).any()):
                self._add(name, plain[part == kind])
        if retain is not None:
            retained = self.retain_term(retain)
            loss = loss + weighted_mean(retained, self.warm_up(inputs["retain_weights"]), num_examples=num_examples)
            self._add("retain_term", retained)
        return loss, tokens.logits

    def _add(self, name: str, values: Tensor) -> None:
        value, number = self._sums.get(name, (0.0, 0))
        self._sums[name] = (value + float(values.detach().sum()), number + len(values))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the step's unweighted terms to its line."""
        if "loss" in logs:
            sums = self._sums_of_all()
            capped, num_forget = sums.get("capped_share", (0.0, 0.0))
            self.journal.count("capped_examples", int(capped))
            self.journal.count("forget_examples", int(num_forget))
            logs.update({name: value / number for name, (value, number) in sums.items()})
            logs["clipped_share"] = self._clipped_share_with(logs)
            self._sums = {}
        super().log(logs, start_time)

    def _sums_of_all(self) -> dict[str, tuple[float, float]]:
        """`_sums` over all processes; names that none of them has are left out."""
        own = [number for name in TERMS for number in self._sums.get(name, (0.0, 0))]
        values = total(own, self.args.device)
        pairs = zip(TERMS, values[::2], values[1::2], strict=True)
        return {name: (value, number) for name, value, number in pairs if number}

    def _clipped_share_with(self, logs: dict[str, float]) -> float:
        """Share of clipped steps up to this one, which the journal has not counted yet."""
        clipped = self.journal.counts["clipped_steps"] + (0 < self.args.max_grad_norm < logs.get("grad_norm", 0.0))
        return clipped / (self.journal.counts["steps"] + 1)


class ValidationCallback(TrainerCallback):
    """Measures on validation rows before the first step, every so many steps, and after the last step.

    Args:
        eval_steps: between losses on validation rows; 0 = none but those beside an attack.
        measure: gives them, of a model; `with_perplexity` beside an attack.
        eval_asr, attack: the same for attack success, which always has the losses of the same step beside it.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        eval_steps: int,
        measure: Callable[..., dict[str, float]],
        eval_asr: int = 0,
        attack: Callable[[nn.Module], dict[str, float]] | None = None,
    ) -> None:
        self.journal = journal
        self.eval_steps = eval_steps
        self.measure = measure
        self.eval_asr = eval_asr
        self.attack = attack

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._record(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._record(state, kwargs["model"])

    def _record(self, state: TrainerState, model: nn.Module) -> None:
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
