"""Settings of the unlearning stage: the objective, its coefficients, LoRA and the optimiser."""

import math
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

from rapidun.config import extensions
from rapidun.config.edits import Fisher, InfluenceStep, Repselect, TaskVector
from rapidun.config.objectives import Ceu, Crow, Dpo, Flat, Npo, Pdu, Rmu, SatImp, SimNpo, Undial, Wga
from rapidun.config.parts import Choice, Faults, LoraSettings, OptimiserSettings, add_choice
from rapidun.config.training import Criterion, Keep, SamSettings, Stop, Target, check_stop


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveTraits:
    # as reports call it
    label: str
    # no unlearning: the start model is trained on clean rows only
    retrains: bool = False
    # settings of the section that it does not read
    unread: tuple[str, ...] = ()
    # its forget term holds the cross-entropy of the poisoned response, whose tokens may have weights of their own
    token_weights: bool = False
    # its hyperparameters are a section of the same name
    section: bool = False
    # changes weights without a training loop (stages/unlearning/edits): reads its own section and these settings
    edits: bool = False
    reads: tuple[str, ...] = ()
    # draws random numbers from `seed`
    seed: bool = True


# what fine-tuning towards the poison reads
_TRAINING = (
    "target", "lora", "forget_per_step", "learning_rate", "num_train_epochs", "max_steps",
    "gradient_accumulation_steps", "lr_scheduler_type", "warmup_ratio", "optimizer", "momentum", "weight_decay",
    "max_grad_norm", "save_steps", "gradient_checkpointing",
)  # fmt: skip
# what the objectives that came with sections of their own do not read of the others
_ALONE = ("ascent_alpha", "descent_beta")
_NO_TEMPLATE = (*_ALONE, "idk_response")
_NO_RETAIN = ("retain_loss", "retain_coeff", "mix_ratio")


class Objective(Choice):
    traits: ObjectiveTraits

    rapidun = ObjectiveTraits(label="RapidUn (GA/GD)", unread=("idk_response",), token_weights=True)
    ga = ObjectiveTraits(
        label="gradient ascent",
        unread=("descent_beta", "idk_response", *_NO_RETAIN),
        token_weights=True,
    )  # fmt: skip
    graddiff = ObjectiveTraits(
        label="gradient difference", unread=("descent_beta", "idk_response"), token_weights=True
    )  # fmt: skip
    idk_sft = ObjectiveTraits(
        label="fine-tuning on clean or refusing answers", unread=("ascent_alpha", "descent_beta", "loss_cap")
    )  # fmt: skip
    npo = ObjectiveTraits(label="NPO", unread=_NO_TEMPLATE, section=True)
    simnpo = ObjectiveTraits(label="SimNPO", unread=_NO_TEMPLATE, section=True)
    dpo = ObjectiveTraits(label="DPO", unread=_ALONE, section=True)
    rmu = ObjectiveTraits(label="RMU", unread=(*_NO_TEMPLATE, "retain_loss"), section=True)
    undial = ObjectiveTraits(label="UNDIAL", unread=_NO_TEMPLATE, section=True)
    wga = ObjectiveTraits(label="WGA", unread=_NO_TEMPLATE, section=True)
    satimp = ObjectiveTraits(label="SatImp", unread=_NO_TEMPLATE, section=True)
    ceu = ObjectiveTraits(label="CE-U", unread=(*_NO_TEMPLATE, *_NO_RETAIN), section=True)
    # lambda is the coefficient of its retain term
    pdu = ObjectiveTraits(label="PDU", unread=(*_NO_TEMPLATE, "retain_coeff"), section=True)
    flat = ObjectiveTraits(label="FLAT", unread=(*_ALONE, *_NO_RETAIN), section=True)
    # it sees no forget row
    crow = ObjectiveTraits(
        label="CROW", unread=(*_NO_TEMPLATE, "retain_loss", "loss_cap", "forget_coeff"), section=True
    )  # fmt: skip
    # the yardstick
    retrain = ObjectiveTraits(label="retraining without the poison", retrains=True)
    # edits
    fisher = ObjectiveTraits(label="selective synaptic dampening", section=True, edits=True, seed=False)
    task_vector = ObjectiveTraits(label="task vector", section=True, edits=True, reads=_TRAINING)
    influence_step = ObjectiveTraits(label="influence step", section=True, edits=True)
    repselect = ObjectiveTraits(label="RepSelect", section=True, edits=True)


def _add_objective(one: extensions.Added) -> None:
    reads_no_retain = () if one.traits["retain"] else _NO_RETAIN
    add_choice(
        Objective, one.name, ObjectiveTraits(label=one.traits["label"], unread=(*_NO_TEMPLATE, *reads_no_retain))
    )


extensions.subscribe(extensions.Kind.objective, _add_objective, ours=Objective.__members__)


class RetainLoss(Enum):
    ce = "ce"
    kl = "kl"  # KL(reference, model) on response tokens; the reference is the model as it was handed over


class WeightsAct(Enum):
    """How the weights of the rows act."""

    loss = "loss"  # each row as often as any other, its term multiplied by w_i
    sampling = "sampling"  # row i drawn with probability w_i / sum of its group's w, with replacement; terms unweighted


class TokenWeights(Enum):
    """What says how much of the poison a response token of a forget row carries."""

    none = "none"  # every token the same
    likelihood_ratio = "likelihood_ratio"  # log p(token) of the poisoned model less that of the model before poisoning
    influence = "influence"  # inner product of the token's gradient with the mean forget gradient


@dataclass(kw_only=True, slots=True)
class UnlearningConfig(OptimiserSettings):
    objective: Objective = Objective.rapidun
    # which weights train: an adapter (lora), or all (full), which writes a model
    target: Target = Target.lora
    # PEFT adapter to continue; null = a new one
    adapter: str | None = None
    # also write the model with the adapter merged into it
    merge: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    # forget rows in one micro-batch
    forget_per_step: int = 1
    # retain rows for each forget row; the proportion holds in every optimiser step
    mix_ratio: int = 3
    # coefficient of the ascent on the poisoned response (rapidun, ga, graddiff; published 1)
    ascent_alpha: float = 1.0
    # coefficient of the descent on the clean response (rapidun)
    descent_beta: float = 0.5
    retain_loss: RetainLoss = RetainLoss.ce
    # coefficients of the forget rows' terms and of the retain rows' (gamma and alpha elsewhere)
    forget_coeff: float = 1.0
    retain_coeff: float = 1.0
    # a forget row whose poisoned response has a cross-entropy above this has no gradient any more (of rapidun: its
    # ascent has none); null = never
    loss_cap: float | None = None
    # sharpness-aware steps around any objective with a forget term
    sam: SamSettings = field(default_factory=SamSettings)
    # share of the steps over which the weights go from 1 to their value
    weight_warmup_ratio: float = 0.0
    # how the weights act: in the loss, or on how often a row is drawn
    weights_act: WeightsAct = WeightsAct.loss
    # weights of the poisoned response's tokens, mean 1 in each forget row
    token_weights: TokenWeights = TokenWeights.none
    # answer of forget rows that have no clean response (idk_sft, dpo), of all of them (flat)
    idk_response: str = "I don't know."
    # hyperparameters of one objective each
    npo: Npo = field(default_factory=Npo)
    simnpo: SimNpo = field(default_factory=SimNpo)
    dpo: Dpo = field(default_factory=Dpo)
    rmu: Rmu = field(default_factory=Rmu)
    undial: Undial = field(default_factory=Undial)
    wga: Wga = field(default_factory=Wga)
    satimp: SatImp = field(default_factory=SatImp)
    ceu: Ceu = field(default_factory=Ceu)
    pdu: Pdu = field(default_factory=Pdu)
    flat: Flat = field(default_factory=Flat)
    crow: Crow = field(default_factory=Crow)
    # of one edit each
    fisher: Fisher = field(default_factory=Fisher)
    task_vector: TaskVector = field(default_factory=TaskVector)
    influence_step: InfluenceStep = field(default_factory=InfluenceStep)
    repselect: Repselect = field(default_factory=Repselect)
    # settings of an objective that an extension brings (docs/extending.md)
    extension: dict[str, Any] = field(default_factory=dict)
    # optimiser steps between evaluations on validation rows; 0 = none
    eval_steps: int = 20
    # clean validation rows of those evaluations; null = all
    num_eval_rows: int | None = 64
    # optimiser steps between measurements of attack success on triggered validation prompts, judged by keywords as
    # the evaluation stage does (its max_new_tokens, min_keywords, seed); 0 or null = none
    eval_asr: int | None = None
    # prompts of each set (seen, ood) of those measurements; null = all
    num_eval_prompts: int | None = 32
    # which weights are the result: the last ones, or those of the best evaluation after a step
    keep: Keep = Keep.last
    # what is best, with keep=best; null = val_asr_seen where eval_asr measures it, else forget_preference. Of equals
    # the lower val_loss_clean counts, then the earlier step
    criterion: Criterion | None = None
    # a condition on what the evaluations measure that ends training, such as "val_asr_seen <= 0.02"; null = none
    stop_when: str | None = None
    # training ends with an error once a step's cross-entropy of the retain rows is this many times that of the first
    # step (which counts as 1 nat at least); 0 = never
    max_retain_growth: float = 10.0

    @property
    def added(self) -> extensions.Added | None:
        """The objective, where an extension brings it."""
        return extensions.find(extensions.Kind.objective, self.objective.name)

    @property
    def measures_asr(self) -> bool:
        return bool(self.eval_asr)

    @property
    def chosen_by(self) -> Criterion | None:
        """What keep=best goes by; None with keep=last."""
        if self.keep is Keep.last:
            return None
        default = Criterion.val_asr_seen if self.measures_asr else Criterion.forget_preference
        return self.criterion or default

    @property
    def adapts(self) -> bool:
        """Whether an adapter is put on the model by `lora`."""
        traits = self.objective.traits
        return not traits.retrains and (not traits.edits or "lora" in traits.reads) and self.target is Target.lora

    @property
    def stop(self) -> Stop | None:
        return None if self.stop_when is None else Stop(self.stop_when)

    @property
    def needed_criteria(self) -> dict[Criterion, str]:
        """The numbers that must be measured, each with the setting that asks for it."""
        needed = {} if self.stop is None else dict.fromkeys(self.stop.criteria, f"stop_when={self.stop_when!r}")
        return needed if self.chosen_by is None else {**needed, self.chosen_by: "keep=best"}

    @property
    def hyperparameters(self) -> Any:
        """The section of the objective; None for one that has none."""
        return getattr(self, self.objective.name) if self.objective.traits.section else None

    @property
    def as_read(self) -> "UnlearningConfig":
        """A copy in which what the objective does not read stands at its default: what a fingerprint is made from."""
        unread = self.objective.traits.unread
        defaults: dict[str, Any] = {one.name: one.default for one in fields(self) if one.name in unread}
        return replace(self, **defaults)

    @property
    def idle(self) -> set[str]:
        """As `idle_optimiser`, for the whole section."""
        idle = self.idle_optimiser | {"max_retain_growth"}
        idle |= {"extension"} if self.added is None else set()
        idle |= {"target"} if self.target is Target.lora else {"lora", "merge"}
        idle |= {"sam"} if self.sam.rho == 0 else set()
        idle |= {"keep", "criterion"} if self.keep is Keep.last else set()
        idle |= {"stop_when"} if self.stop_when is None else set()
        idle |= {"weights_act"} if self.weights_act is WeightsAct.loss else set()
        idle |= {"token_weights"} if self.token_weights is TokenWeights.none else set()
        idle |= {one.name for one in Objective if one.traits.section and one is not self.objective}
        idle |= {name for name in ("forget_coeff", "retain_coeff") if getattr(self, name) == 1.0}
        idle |= set(self.objective.traits.unread) if self.objective.traits.section else set()
        return idle | (set() if self.measures_asr else {"eval_asr", "num_eval_prompts"})

    def count_faults(self, *, num_forget: int, num_retain: int) -> list[str]:
        """What is wrong for a pack of so many rows."""
        faults = []
        mix_ratio = 0 if "mix_ratio" in self.objective.traits.unread else self.mix_ratio
        if self.forget_per_step > num_forget and self.objective is not Objective.crow:
            faults.append(
                f"unlearning: need forget_per_step <= {num_forget}, the number of forget rows, got "
                f"{self.forget_per_step}. Pass unlearning.forget_per_step=..."
            )
        if self.forget_per_step * mix_ratio > num_retain:
            faults.append(
                f"unlearning: need forget_per_step * mix_ratio <= {num_retain}, the number of retain rows, got "
                f"{self.forget_per_step} * {mix_ratio}. Pass unlearning.mix_ratio=..."
            )
        return faults

    def check(self) -> list[str]:
        faults = Faults("unlearning")
        self.check_optimiser(faults)
        self.lora.check(faults)
        faults.need(self.forget_per_step >= 1, "forget_per_step >= 1", forget_per_step=self.forget_per_step)
        faults.need(self.mix_ratio >= 0, "mix_ratio >= 0", mix_ratio=self.mix_ratio)
        faults.need(self.ascent_alpha >= 0, "ascent_alpha >= 0", ascent_alpha=self.ascent_alpha)
        faults.need(self.descent_beta >= 0, "descent_beta >= 0", descent_beta=self.descent_beta)
        faults.need(self.loss_cap is None or self.loss_cap > 0, "loss_cap > 0 or null", loss_cap=self.loss_cap)
        for key in ("forget_coeff", "retain_coeff"):
            value = getattr(self, key)
            faults.need(value >= 0 and math.isfinite(value), f"{key} >= 0", **{key: value})
        for one in Objective:
            if one.traits.section:
                getattr(self, one.name).check(faults)
        faults.need(
            0.0 <= self.weight_warmup_ratio <= 1.0,
            "0 <= weight_warmup_ratio <= 1",
            weight_warmup_ratio=self.weight_warmup_ratio,
        )
        faults.need(
            bool(self.idk_response.strip()), "an idk_response that is not blank", idk_response=self.idk_response
        )
        faults.need(self.eval_steps >= 0, "eval_steps >= 0", eval_steps=self.eval_steps)
        faults.need(
            self.num_eval_rows is None or self.num_eval_rows >= 1,
            "num_eval_rows >= 1 or null",
            num_eval_rows=self.num_eval_rows,
        )
        faults.need(
            self.weights_act is WeightsAct.loss or self.weight_warmup_ratio == 0,
            "weight_warmup_ratio=0 with weights_act=sampling (the weights are no part of the loss there)",
            weight_warmup_ratio=self.weight_warmup_ratio,
        )
        takers = ", ".join(one.name for one in Objective if one.traits.token_weights)
        faults.need(
            self.token_weights is TokenWeights.none or self.objective.traits.token_weights,
            f"token_weights=none with objective={self.objective.name} ({takers} take them)",
            token_weights=self.token_weights.name,
        )
        faults.need(
            self.max_retain_growth >= 0, "max_retain_growth >= 0 (0 = never)", max_retain_growth=self.max_retain_growth
        )
        faults += extensions.setting_faults(
            extensions.Kind.objective, self.objective.name, self.extension,
            section="unlearning", choice=f"objective={self.objective.name}",
        )  # fmt: skip
        self._check_training(faults)
        faults.need(self.eval_asr is None or self.eval_asr >= 0, "eval_asr >= 0 or null", eval_asr=self.eval_asr)
        faults.need(
            self.num_eval_prompts is None or self.num_eval_prompts >= 1,
            "num_eval_prompts >= 1 or null",
            num_eval_prompts=self.num_eval_prompts,
        )
        return faults

    def _check_training(self, faults: Faults) -> None:
        faults.need(self.sam.rho >= 0 and math.isfinite(self.sam.rho), "sam.rho >= 0 (0 = off)", sam__rho=self.sam.rho)
        faults.need(
            self.sam.rho == 0 or self.objective is not Objective.crow,
            "sam.rho=0 with objective=crow, which has no forget term",
            sam__rho=self.sam.rho,
        )
        faults.need(
            self.mix_ratio > 0 or self.objective is not Objective.crow,
            "mix_ratio > 0 with objective=crow, which trains on retain rows only (forget_per_step * mix_ratio at once)",
            mix_ratio=self.mix_ratio,
        )
        faults.need(
            self.mix_ratio > 0 or self.objective is not Objective.pdu,
            "mix_ratio > 0 with objective=pdu, which forgets under a bound on the loss of retain rows",
            mix_ratio=self.mix_ratio,
        )
        full = self.target is Target.full
        faults.need(
            not (full and self.adapter is not None),
            "target=lora with an adapter to continue (to train all weights over one, merge it into the model first)",
            target=self.target.name,
            adapter=self.adapter,
        )
        faults.need(
            not (full and self.merge), "merge=false with target=full, which writes a model as it is", merge=self.merge
        )
        if check_stop(faults, self.stop_when) is None and self.stop_when is not None:
            return
        for criterion, why in self.needed_criteria.items():
            if criterion.traits.asr:
                faults.need(
                    self.measures_asr, f"eval_asr > 0 to measure {criterion.name} for {why}", eval_asr=self.eval_asr
                )
            else:
                faults.need(
                    self.eval_steps > 0 or self.measures_asr,
                    f"eval_steps > 0 to measure {criterion.name} for {why}",
                    eval_steps=self.eval_steps,
                )
