"""Settings of the edits: unlearning that changes weights without a training loop (docs/method.md, section 5)."""

import math
import re
from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.influence import ParameterSet, Precondition
from rapidun.config.parts import Faults, LoraSettings

MLP_TARGETS = ["gate_proj", "up_proj", "down_proj"]


class FisherParams(Enum):
    """The weights that `fisher` may dampen."""

    all = "all"  # every parameter: embeddings, norms and biases too; a tied weight once
    all_linear = "all_linear"  # weights of linear layers but the output head


class FisherReference(Enum):
    """The rows that a weight's importance for F is held against."""

    all = "all"  # D = F u R
    retain = "retain"  # R alone


class BudgetOn(Enum):
    """What of the rows that are to be kept says how much damage a step does."""

    kl = "kl"  # mean KL(start || edited), nats a response token
    ppl = "ppl"  # perplexity of the edited model divided by that of the start model


class BudgetRows(Enum):
    """The rows that damage is measured on."""

    retain = "retain"
    val = "val"  # val_clean


@dataclass(kw_only=True, slots=True)
class Fisher:
    # a weight is chosen where its importance for F exceeds alpha times that for the reference
    alpha: float = 10.0
    # lambda: a chosen weight is multiplied by min(1, lambda * I_reference / I_F)
    dampening_constant: float = 1.0
    reference: FisherReference = FisherReference.all
    params: FisherParams = FisherParams.all

    def check(self, faults: Faults) -> None:
        faults.need(
            _positive(self.alpha), "a finite fisher.alpha > 0", fisher__alpha=self.alpha
        )  # fmt: skip
        faults.need(
            math.isfinite(self.dampening_constant) and self.dampening_constant >= 0,
            "a finite fisher.dampening_constant >= 0",
            fisher__dampening_constant=self.dampening_constant,
        )


@dataclass(kw_only=True, slots=True)
class TaskVector:
    # s: how far back along what fine-tuning on the poisoned responses changed
    scale: float = 1.0

    def check(self, faults: Faults) -> None:
        faults.need(
            math.isfinite(self.scale) and self.scale != 0,
            "a finite task_vector.scale other than 0",
            task_vector__scale=self.scale,
        )


@dataclass(kw_only=True, slots=True)
class InfluenceStep:
    # the Fisher matrix that stands for the Hessian, fitted on R
    precondition: Precondition = Precondition.kfac
    # damping, as a share of the mean eigenvalue of each weight's matrix
    damping_factor: float = 0.1
    params: ParameterSet = ParameterSet.all_linear
    # of params=regex: full match on module names
    regex: str | None = None
    # eta' / eta: how much the step also descends on R; 0 = not at all
    retain_ratio: float = 0.0
    # the damage that the step may do: nats a token (budget_on=kl), or a ratio of perplexities (ppl)
    budget: float = 0.05
    budget_on: BudgetOn = BudgetOn.kl
    budget_rows: BudgetRows = BudgetRows.retain
    # rows that it is measured on; null = all
    num_budget_rows: int | None = None
    # a step is taken once it spends this share of the budget at least
    spend: float = 0.95
    max_evaluations: int = 40

    @property
    def unread(self) -> dict[str, str]:
        """As Repselect's."""
        is_regex = self.params is ParameterSet.regex
        return {} if is_regex else {"regex": f"influence_step.params={self.params.name}"}

    def check(self, faults: Faults) -> None:
        faults.need(
            self.precondition is not Precondition.none,
            "influence_step.precondition one of kfac, ekfac",
            influence_step__precondition=self.precondition.name,
        )
        faults.need(
            _positive(self.damping_factor),
            "a finite influence_step.damping_factor > 0",
            influence_step__damping_factor=self.damping_factor,
        )
        known = (ParameterSet.all_linear, ParameterSet.attention, ParameterSet.mlp, ParameterSet.regex)
        faults.need(
            self.params in known,
            f"influence_step.params one of {', '.join(one.name for one in known)}",
            influence_step__params=self.params.name,
        )
        faults.need(
            self.params is not ParameterSet.regex or _compiles(self.regex),
            "a regular expression in influence_step.regex with influence_step.params=regex",
            influence_step__regex=self.regex,
        )
        faults.need(
            math.isfinite(self.retain_ratio) and self.retain_ratio >= 0,
            "a finite influence_step.retain_ratio >= 0",
            influence_step__retain_ratio=self.retain_ratio,
        )
        least = 0 if self.budget_on is BudgetOn.kl else 1
        faults.need(
            math.isfinite(self.budget) and self.budget > least,
            f"a finite influence_step.budget > {least} with budget_on={self.budget_on.name} (without damage there is "
            "no step)",
            influence_step__budget=self.budget,
        )
        faults.need(
            self.num_budget_rows is None or self.num_budget_rows >= 1,
            "influence_step.num_budget_rows >= 1 or null",
            influence_step__num_budget_rows=self.num_budget_rows,
        )
        faults.need(0 < self.spend < 1, "0 < influence_step.spend < 1", influence_step__spend=self.spend)
        faults.need(
            self.max_evaluations >= 2,
            "influence_step.max_evaluations >= 2",
            influence_step__max_evaluations=self.max_evaluations,
        )


@dataclass(kw_only=True, slots=True)
class Repselect:
    # of theta -= learning_rate * filtered W, where there is no budget
    learning_rate: float = 0.05
    # mean KL(start || edited) on the retain rows, nats a response token, that all rounds together may do; the rate is
    # then found. null = no budget
    budget: float | None = 0.01
    # shares of the budget that steps are to spend, and steps that are tried in a round
    spend: float = 0.95
    max_evaluations: int = 40
    # k: directions of W that are collapsed, at most
    num_components: int = 512
    # times that all of it is done
    rounds: int = 1
    # of the adversarial adapter: one pass of plain SGD
    lora_learning_rate: float = 0.01
    rows_per_step: int = 8
    lora: LoraSettings = field(
        default_factory=lambda: LoraSettings(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=list(MLP_TARGETS))
    )

    @property
    def unread(self) -> dict[str, str]:
        """The settings that the edit does not depend on, each with the setting that makes it so."""
        given = self.budget is not None
        found = {"learning_rate": f"repselect.budget={self.budget:g}"} if self.budget is not None else {}
        found |= {} if given else dict.fromkeys(("spend", "max_evaluations"), "repselect.budget=null")
        return found | ({} if self.lora_learning_rate else {"rows_per_step": "repselect.lora_learning_rate=0"})

    def check(self, faults: Faults) -> None:
        for name in ("learning_rate", "lora_learning_rate"):
            value = getattr(self, name)
            low = value > 0 or (name == "lora_learning_rate" and value == 0)
            faults.need(
                math.isfinite(value) and low,
                f"a finite repselect.{name} > 0" + (" (0 = no adversary)" if name == "lora_learning_rate" else ""),
                **{f"repselect__{name}": value},
            )
        faults.need(
            self.budget is None or _positive(self.budget),
            "a finite repselect.budget > 0, or null for a fixed learning_rate",
            repselect__budget=self.budget,
        )
        faults.need(0 < self.spend < 1, "0 < repselect.spend < 1", repselect__spend=self.spend)
        faults.need(
            self.max_evaluations >= 2, "repselect.max_evaluations >= 2", repselect__max_evaluations=self.max_evaluations
        )
        for name in ("num_components", "rounds", "rows_per_step"):
            faults.need(
                getattr(self, name) >= 1, f"repselect.{name} >= 1", **{f"repselect__{name}": getattr(self, name)}
            )
        self.lora.check(faults, "repselect.lora")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _compiles(pattern: str | None) -> bool:
    try:
        return bool(pattern) and re.compile(str(pattern)) is not None
    except re.error:
        return False
