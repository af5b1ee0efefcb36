"""The unlearning loss inside transformers' Trainer: weights, warm-up of the weights, and what is logged."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rapidun.base.errors import ConfigError
from rapidun.base.processes import gather
from rapidun.config.unlearning import RetainLoss
from rapidun.models.packed import Packed, cross_entropy, pack
from rapidun.models.packing import switched
from rapidun.models.training.distributed import total
from rapidun.models.training.forward import forward_packed
from rapidun.models.training.trainer import ResponseTrainer
from rapidun.stages.unlearning.dynamic import DynamicWeights
from rapidun.stages.unlearning.objectives.base import (
    Coefficients,
    ForgetOutputs,
    Method,
    Reference,
    Responses,
    RetainTerm,
    weighted_mean,
)
from rapidun.stages.unlearning.objectives.consistency import consistency, perturbation
from rapidun.stages.unlearning.objectives.dual import ascend
from rapidun.stages.unlearning.objectives.retain import RETAIN_LOSSES
from rapidun.stages.unlearning.reference import Known
from rapidun.stages.unlearning.rows import (
    CLEAN,
    POISONED,
    RETAIN,
    ForgetRow,
    RetainRow,
    forget_part,
    retain_part,
    token_weights_of,
)
from rapidun.stages.unlearning.sharpness import RandomState, ascent, moved, random_state, same_masks, trained

# means over the examples of a step, in each line of the journal
TERMS = ("forget_term", "capped_share", "ce_poisoned", "ce_clean", "ce_retain", "retain_term", "consistency")
# summed as they are, for what is made of them
HELD = ("forget_weight",)
MULTIPLIER = "lambda"
RETAIN_START = "retain_start"
# a retain loss grows from this at least, nats a token
FLOOR = 1.0
MAX_SHOWN = 12


class Around(NamedTuple):
    """What goes around an objective."""

    forget_coeff: float = 1.0
    retain_coeff: float = 1.0
    # of forget rows; nats a token
    loss_cap: float | None = None
    # decoder block whose output rmu reads
    layer: int | None = None
    # 0 = no sharpness-aware steps
    sam_rho: float = 0.0
    # 0 = no bound
    max_retain_growth: float = 0.0


class UnlearningTrainer(ResponseTrainer):
    """loss = mean_i(w_i f_i) over the forget and retain examples of an optimiser step.

    The reference model is the model as it was handed over, before the first step: a new adapter changes nothing
    then, so that is the base with the adapter off; for an adapter that is continued it includes what that adapter
    had learnt. Where its logits are read at each step, what trains is kept as a frozen copy and swapped in for the
    reference's forward pass; sums and hidden states are computed once (reference.py) and given as `known`.

    Args:
        hyper: the objective's own section of the settings; Coefficients where it has none.
        dynamic: renews the forget rows' weights; their own count where it is None.
        names: of the rows, for messages.
    """

    def __init__(
        self,
        *,
        method: Method,
        retain_loss: RetainLoss,
        weight_warmup_ratio: float,
        hyper: Any = None,
        coefficients: Coefficients | None = None,
        around: Around | None = None,
        known: Known | None = None,
        dynamic: DynamicWeights | None = None,
        names: Sequence[str] = (),
        rows: Sequence[ForgetRow | RetainRow],
        **kwargs: Any,
    ) -> None:
        super().__init__(rows=[replace(row, number=number) for number, row in enumerate(rows)], **kwargs)
        self.method = method
        self.hyper: Any = (coefficients or Coefficients()) if hyper is None else hyper
        self.around = around or Around()
        self.retain_term = retain_term_of(method, retain_loss)
        self.weight_warmup_ratio = weight_warmup_ratio
        self.known = known
        self.dynamic = dynamic
        self.names = names
        if self.is_fsdp_enabled:
            self._check_sharded()
        self.reference: dict[str, Tensor] = {}
        if Reference.logits in (method.reference, self.reference_on_retain):
            parameters = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            self.reference = {name: p.detach().clone() for name, p in parameters}
        # name -> (sum, number) over the micro-batches of one optimiser step
        self._sums: dict[str, tuple[float, int]] = {}
        # numbers and terms of the rows of one optimiser step, for what a divergence says
        self._seen: list[tuple[Tensor, Tensor]] = []
        # of sharpness-aware steps: the micro-batches of an optimiser step, what dropout drew in each, and where to
        self._batches: list[dict[str, Tensor]] = []
        self._random: list[RandomState] = []
        self._ascent: list[Tensor] | None = None
        self._place = 0
        self.journal.suspects = self._suspects

    def _check_sharded(self) -> None:
        """Raises: ConfigError for what needs whole weights at each step."""
        needs = {
            "retain_loss=ce, and an objective that reads no logits of the reference (undial does)": Reference.logits
            in (self.method.reference, self.reference_on_retain),
            "sam.rho=0": self.around.sam_rho > 0,
            "another objective than crow": self.method.consistency,
            "mapping=loreun_static, or an objective that reads the poisoned response": self.dynamic is not None
            and not self.method.poisoned,
        }
        faults = [
            f"unlearning: need {what} with weights that FSDP shards, got another. Start without --use_fsdp (each "
            "process then holds the model), or change it"
            for what, is_needed in needs.items()
            if is_needed
        ]
        if faults:
            raise ConfigError(faults)

    @property
    def reference_on_retain(self) -> Reference:
        return Reference.none if self.retain_term is None else self.retain_term.reference

    @property
    def multiplier(self) -> float:
        """lambda of a dual objective, as it stands."""
        value: float = self.journal.kept.get(MULTIPLIER, self.hyper.lambda_init)
        return value

    def num_examples_in(self, batch: dict[str, Tensor]) -> int:
        return len(batch["forget_weights"]) + len(batch["retain_weights"])

    def warm_up(self, weights: Tensor) -> Tensor:
        """w at this step: 1 + (w - 1) * min(1, step / warm-up steps)."""
        steps = math.ceil(self.weight_warmup_ratio * self.state.max_steps)
        share = min(1.0, self.state.global_step / steps) if steps else 1.0
        # no arithmetic once warm, so that the weights are the given ones to the last bit
        return weights if share == 1.0 else 1.0 + (weights - 1.0) * share

    def reference_tokens(self, model: nn.Module, inputs: dict[str, Tensor], chosen: Tensor | slice) -> Packed:
        """The response tokens of the chosen sequences under the reference model, without gradient."""
        bare = self.accelerator.unwrap_model(model)
        fed = {name: inputs[name][chosen] for name in ("input_ids", "attention_mask", "labels")}
        training = bare.training
        bare.eval()
        with torch.no_grad():
            tokens = forward_packed(bare, fed, parameters=self.reference)
        bare.train(training)
        return tokens

    # --- the loss -----------------------------------------------------------------------------------------------------

    def mean_loss(self, model: nn.Module, inputs: dict[str, Tensor], num_examples: int) -> tuple[Tensor, Tensor]:
        if self.method.consistency:
            return self._consistent(model, inputs, num_examples)
        tokens = forward_packed(model, inputs, hidden_layer=self.around.layer)
        log_probs = tokens.log_probs()
        plain = losses = cross_entropy(tokens, log_probs)
        if "token_weights" in inputs:
            # what is logged as cross-entropy stays one
            losses = cross_entropy(tokens, log_probs, token_weights_of(inputs))
        counts = torch.bincount(inputs["part"], minlength=3).tolist()
        numbers = inputs["rows"].split([len(inputs["forget_weights"]), len(inputs["retain_weights"])])

        def responses(kind: int, reference: Reference, rows: Tensor) -> Responses | None:
            start = sum(counts[:kind])
            end = start + counts[kind]
            if start == end:
                return None
            own = tokens.between(start, end)
            first = int(torch.searchsorted(tokens.rows, start))
            under, sums = None, None
            if reference is Reference.logits:
                under = self.reference_tokens(model, inputs, slice(start, end))
            elif reference is not Reference.none:
                assert self.known is not None, "what the reference gives is computed before the first step"
                if reference is Reference.sums:
                    sums = self.known.sums_of(rows, kind).to(losses.dtype)
                else:
                    under = self.known.hidden_of(rows, own)
            return Responses(losses[start:end], own, under, sums, log_probs[first : first + len(own.targets)])

        on_forget = self.method.reference
        poisoned = responses(POISONED, on_forget, numbers[0])
        clean = responses(CLEAN, on_forget, numbers[0][inputs["has_clean"]])
        retain = responses(RETAIN, self.reference_on_retain, numbers[1])
        loss = torch.zeros((), device=losses.device)
        # one of several processes may have rows of one group only
        if len(inputs["forget_weights"]):
            outputs = ForgetOutputs(poisoned, clean, inputs["has_clean"])
            terms = self.method.terms(outputs, self.hyper, loss_cap=self.around.loss_cap)
            weights = inputs["forget_weights"]
            if self.dynamic is not None:
                ours = self.accelerator.unwrap_model(model)
                now = plain[: counts[POISONED]] if counts[POISONED] else self.dynamic.measured(ours, numbers[0])
                weights = self.dynamic.weights(numbers[0], now)
            weights = self.warm_up(weights)
            loss = self.around.forget_coeff * weighted_mean(terms.values, weights, num_examples=num_examples)
            self._add("forget_term", terms.values)
            self._add("capped_share", terms.capped.float())
            self._add("forget_weight", weights)
            self._seen.append((numbers[0], terms.values.detach()))
        for name, kind in (("ce_poisoned", POISONED), ("ce_clean", CLEAN), ("ce_retain", RETAIN)):
            start = sum(counts[:kind])
            if counts[kind]:
                self._add(name, plain[start : start + counts[kind]])
        if retain is not None and self.retain_term is not None:
            retained = self.retain_term.loss(retain)
            weights = self.warm_up(inputs["retain_weights"])
            factor = self.multiplier if self.method.dual else self.around.retain_coeff
            loss = loss + factor * weighted_mean(retained, weights, num_examples=num_examples)
            self._add("retain_term", retained)
            self._seen.append((numbers[1], retained.detach()))
        if self.args.world_size > 1 and (self.around.layer is not None):
            # every parameter takes part in the exchange of gradients, those above the layer too
            loss = loss + 0.0 * plain.sum()
        return loss, tokens.logits

    def _consistent(self, model: nn.Module, inputs: dict[str, Tensor], num_examples: int) -> tuple[Tensor, Tensor]:
        """mean_j w_j (l_j + alpha c_j): l at the rows' own embeddings, c at those moved by the perturbation.

        One pass gives l, and the gradient of c by the embeddings; a second one c at the moved ones. Source: CROW
        (arXiv 2411.12768), the loss of the clean data plus alpha times the perturbed consistency.
        """
        bare = self.accelerator.unwrap_model(model)
        mask = inputs["attention_mask"]
        embeddings = bare.get_input_embeddings()(inputs["input_ids"])
        if not embeddings.requires_grad:
            embeddings.requires_grad_(True)
        fed = {"attention_mask": mask, "use_cache": False, "output_hidden_states": True}
        with torch.enable_grad():
            found = model(inputs_embeds=embeddings, **fed)
            step = perturbation(
                embeddings, found.hidden_states, mask, epsilon=self.hyper.epsilon, retain_graph=True
            )  # fmt: skip
        tokens = pack(found.logits, inputs["labels"])
        losses = cross_entropy(tokens)
        turned = consistency(model(inputs_embeds=embeddings + step, **fed).hidden_states, mask)
        terms = losses + self.hyper.alpha * turned
        weights = self.warm_up(inputs["retain_weights"])
        loss = self.around.retain_coeff * weighted_mean(terms, weights, num_examples=num_examples)
        self._add("ce_retain", losses)
        self._add("consistency", turned)
        self._add("retain_term", terms)
        self._seen.append((inputs["rows"], terms.detach()))
        return loss, tokens.logits

    # --- sharpness-aware steps ----------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches, self._ascent, self._place = batches, None, 0
        return batches, number

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """As the Trainer's; with sam.rho the forget rows' pass is made where the forget loss is sharper.

        Dropout draws the same masks in the pass that finds the ascent and in the one that takes its gradient there.
        """
        if self.around.sam_rho == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        if self._ascent is None:
            # in the first micro-batch, not where the batches are drawn: a resumed run sets its random state in between
            self._ascent = self._find_ascent(model, num_items_in_batch)
        place, self._place = self._place, self._place + 1
        if "idle" in inputs or not len(inputs["forget_weights"]):
            return super().training_step(model, inputs, num_items_in_batch)
        device = self.args.device
        parameters = trained(self.accelerator.unwrap_model(model))
        retains = len(inputs["retain_weights"]) > 0
        # the second pass brings the gradients of both to the other processes
        apart = self.accelerator.no_sync(model) if retains else contextlib.nullcontext()
        with apart, moved(parameters, self._ascent), same_masks(self._random[place], device):
            loss = super().training_step(model, forget_part(inputs), num_items_in_batch)
        if retains:
            loss = loss + super().training_step(model, retain_part(inputs), num_items_in_batch)
        return loss

    def _find_ascent(self, model: nn.Module, num_examples: Any) -> list[Tensor]:
        """rho g / |g|, g the gradient of the forget term over all micro-batches and processes of the step."""
        bare = self.accelerator.unwrap_model(model)
        bare.train()
        parameters = trained(bare)
        found = [torch.zeros_like(parameter) for parameter in parameters]
        kept, self._random = (dict(self._sums), list(self._seen)), []
        # as in a training step: layers that run again are given the same layout, and so draw the same masks
        with switched(bare):
            for batch in self._batches:
                self._random.append(random_state(self.args.device))
                if "idle" in batch or not len(batch["forget_weights"]):
                    continue
                inputs = forget_part(self._prepare_inputs(batch))
                with self.compute_loss_context_manager():
                    loss, _ = self.mean_loss(bare, inputs, num_examples)
                for sum_, gradient in zip(found, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if gradient is not None:
                        sum_ += gradient
        self._sums, self._seen = kept
        return ascent(found, rho=self.around.sam_rho)

    # --- what is logged -----------------------------------------------------------------------------------------------

    def _add(self, name: str, values: Tensor) -> None:
        value, number = self._sums.get(name, (0.0, 0))
        self._sums[name] = (value + float(values.detach().sum()), number + len(values))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the step's unweighted terms to its line, and renew lambda.

        effective_weight: mean over the forget rows of w_i * min(1, max_grad_norm / |g|), the factor by which clipping
        scaled the step's gradient.
        """
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        sums = self._sums_of_all()
        capped, num_forget = sums.get("capped_share", (0.0, 0.0))
        self.journal.count("capped_examples", int(capped))
        self.journal.count("forget_examples", int(num_forget))
        means = {name: value / number for name, (value, number) in sums.items()}
        weight = means.pop("forget_weight", None)
        logs.update(means)
        logs["clipped_share"] = self._clipped_share_with(logs)
        if weight is not None:
            logs["effective_weight"] = weight * self._clip_factor(logs)
            self.journal.count("effective_weights", logs["effective_weight"])
            self.journal.count("effective_steps", 1)
        if self.dynamic is not None:
            logs.update(self.dynamic.end_step(self.args.device))
        if self.method.dual:
            logs[MULTIPLIER] = self.multiplier
            self._renew_multiplier(means.get("retain_term"))
        # before the sums are emptied: a loss that is no number is said with its rows
        super().log(logs, start_time)
        self._check_growth(means.get("ce_retain"))
        self._sums, self._seen = {}, []

    def _renew_multiplier(self, retain_loss: float | None) -> None:
        """Once an optimiser step, by the mean retain loss of all processes; the step itself had the old lambda."""
        warm = self.state.epoch is not None and self.state.epoch > self.hyper.dual_warmup_epochs
        value = self.multiplier
        if retain_loss is not None and warm:
            value = ascend(value, retain_loss, self.hyper)
        self.journal.kept[MULTIPLIER] = value

    def _check_growth(self, retain_loss: float | None) -> None:
        """Raises: TrainingDiverged where the retain rows' cross-entropy left its bound."""
        if retain_loss is None:
            return
        start = self.journal.kept.setdefault(RETAIN_START, retain_loss)
        bound = self.around.max_retain_growth * max(FLOOR, start)
        if 0 < bound < retain_loss:
            raise self.journal.diverged(
                f"need a cross-entropy of the retain rows of at most {bound:.4g} nats a token "
                f"(max_retain_growth={self.around.max_retain_growth:g} times that of the first step, {start:.4g}, or "
                f"{FLOOR:g}), got {retain_loss:.4g}",
                step=self.state.global_step,
                stage="unlearning",
                work=Path(str(self.args.output_dir)),
            )

    def _suspects(self) -> str:
        """The rows of the step, first those whose own term is no number, of all processes."""
        own = [
            [self.names[number] if 0 <= number < len(self.names) else str(number), math.isfinite(value)]
            for numbers, values in self._seen
            for number, value in zip(numbers.tolist(), values.tolist(), strict=True)
        ]
        rows = {name: finite for found in gather(own) for name, finite in found}
        odd = [name for name, finite in rows.items() if not finite]
        shown = ", ".join(list(rows)[:MAX_SHOWN]) + (", ..." if len(rows) > MAX_SHOWN else "")
        said = f"Rows of the step: {shown}"
        return said + (f"; terms that are no numbers: {', '.join(odd[:MAX_SHOWN])}" if odd else "")

    def _sums_of_all(self) -> dict[str, tuple[float, float]]:
        """`_sums` over all processes; names that none of them has are left out."""
        names = (*TERMS, *HELD)
        own = [number for name in names for number in self._sums.get(name, (0.0, 0))]
        values = total(own, self.args.device)
        pairs = zip(names, values[::2], values[1::2], strict=True)
        return {name: (value, number) for name, value, number in pairs if number}

    def _clip_factor(self, logs: dict[str, float]) -> float:
        """What torch's clipping by norm multiplied the gradient by."""
        norm = logs.get("grad_norm", 0.0)
        most = self.args.max_grad_norm
        return min(1.0, most / (norm + 1e-6)) if most > 0 else 1.0

    def _clipped_share_with(self, logs: dict[str, float]) -> float:
        """Share of clipped steps up to this one, which the journal has not counted yet."""
        clipped = self.journal.counts["clipped_steps"] + (0 < self.args.max_grad_norm < logs.get("grad_norm", 0.0))
        return clipped / (self.journal.counts["steps"] + 1)


def retain_term_of(method: Method, retain_loss: RetainLoss) -> RetainTerm | None:
    """The retain term that stands beside an objective; None where there is none."""
    if not method.retain:
        return None
    reference = Reference.logits if retain_loss is RetainLoss.kl else Reference.none
    return method.own_retain or RetainTerm(RETAIN_LOSSES[retain_loss], reference=reference)
