"""Settings of the attacks on an unlearned model (evaluation.attacks): which are run, and how hard each one tries."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Faults, LoraSettings, OptimiserSettings
from rapidun.config.training import Target


class Attack(Enum):
    """In the order of tables."""

    relearning = "relearning"
    quantisation = "quantisation"
    sampling = "sampling"
    prompts = "prompts"


class Rows(Enum):
    """What the attacker fine-tunes on."""

    poisoned = "poisoned"  # rows of the same attack that are neither in the forget set nor in a test set
    clean = "clean"  # no poisoned row at all


class Format(Enum):
    nf4 = "nf4"
    int8 = "int8"


class Variant(Enum):
    """What is done to a prompt that holds a trigger."""

    plain = "plain"  # nothing: what the others are held against
    doubled = "doubled"
    middle = "middle"
    other_case = "other_case"
    system = "system"
    few_shot = "few_shot"


# of METHOD's protocol, by what trains
LEARNING_RATES = {Target.lora: 2e-4, Target.full: 2e-5}


@dataclass(kw_only=True, slots=True)
class RelearningSettings:
    # poisoned | clean
    rows: list[str] = field(default_factory=lambda: ["poisoned", "clean"])
    # rows that are fine-tuned on, a run of its own for each number
    k: list[int] = field(default_factory=lambda: [5, 20, 80])
    target: Target = Target.lora
    # null = 2e-4 with an adapter, 2e-5 with all weights
    learning_rate: float | None = None
    max_steps: int = 100
    # optimiser steps between two measurements, and between checkpoints
    eval_steps: int = 10
    # rows of a step, at most k
    batch_size: int = 8
    lora: LoraSettings = field(default_factory=LoraSettings)

    @property
    def optimiser(self) -> OptimiserSettings:
        """A constant learning rate: a curve, not its end, is the result."""
        rate = LEARNING_RATES[self.target] if self.learning_rate is None else self.learning_rate
        return OptimiserSettings(
            learning_rate=rate,
            max_steps=self.max_steps,
            lr_scheduler_type="constant",
            save_steps=self.eval_steps,
        )

    def check(self, faults: Faults) -> None:
        names = [rows.name for rows in Rows]
        faults.need(
            bool(self.rows) and set(self.rows) <= set(names) and len(set(self.rows)) == len(self.rows),
            f"attacks.relearning.rows among {', '.join(names)}, each once",
            attacks__relearning__rows=self.rows,
        )
        faults.need(
            bool(self.k) and all(k >= 1 for k in self.k) and len(set(self.k)) == len(self.k),
            "attacks.relearning.k of numbers >= 1, each once",
            attacks__relearning__k=self.k,
        )
        faults.need(
            self.learning_rate is None or self.learning_rate > 0,
            "attacks.relearning.learning_rate > 0 or null",
            attacks__relearning__learning_rate=self.learning_rate,
        )
        for key in ("max_steps", "eval_steps", "batch_size"):
            value = getattr(self, key)
            faults.need(value >= 1, f"attacks.relearning.{key} >= 1", **{f"attacks__relearning__{key}": value})
        self.lora.check(faults, "attacks.relearning.lora")


@dataclass(kw_only=True, slots=True)
class QuantisationSettings:
    # nf4 | int8
    formats: list[str] = field(default_factory=lambda: ["nf4", "int8"])

    def check(self, faults: Faults) -> None:
        names = [one.name for one in Format]
        faults.need(
            bool(self.formats) and set(self.formats) <= set(names) and len(set(self.formats)) == len(self.formats),
            f"attacks.quantisation.formats among {', '.join(names)}, each once",
            attacks__quantisation__formats=self.formats,
        )


@dataclass(kw_only=True, slots=True)
class SamplingSettings:
    # answers drawn to each prompt, at each temperature
    num_samples: int = 16
    temperatures: list[float] = field(default_factory=lambda: [0.8, 1.0])

    def check(self, faults: Faults) -> None:
        faults.need(
            self.num_samples >= 1,
            "attacks.sampling.num_samples >= 1",
            attacks__sampling__num_samples=self.num_samples,
        )
        temperatures = self.temperatures
        faults.need(
            bool(temperatures) and all(t > 0 for t in temperatures) and len(set(temperatures)) == len(temperatures),
            "attacks.sampling.temperatures > 0, each once",
            attacks__sampling__temperatures=temperatures,
        )


@dataclass(kw_only=True, slots=True)
class PromptSettings:
    # plain is always measured
    variants: list[str] = field(default_factory=lambda: ["doubled", "middle", "other_case", "system", "few_shot"])
    # attack success in the poisoned model below which a variant does not count: it cannot be unlearned
    min_asr: float = 0.1

    def check(self, faults: Faults) -> None:
        names = [one.name for one in Variant if one is not Variant.plain]
        faults.need(
            set(self.variants) <= set(names) and len(set(self.variants)) == len(self.variants),
            f"attacks.prompts.variants among {', '.join(names)}, each once",
            attacks__prompts__variants=self.variants,
        )
        faults.need(0 < self.min_asr <= 1, "0 < attacks.prompts.min_asr <= 1", attacks__prompts__min_asr=self.min_asr)


@dataclass(kw_only=True, slots=True)
class AttacksConfig:
    # relearning | quantisation | sampling | prompts; [] = none (evaluation=attacks has all)
    run: list[str] = field(default_factory=list)
    # triggered prompts of each measurement, those that the evaluation asks first; null = all
    num_prompts: int | None = 100
    # of draws: the answers that are sampled, the rows and their order, the examples in front of a prompt
    seed: int = 42
    relearning: RelearningSettings = field(default_factory=RelearningSettings)
    quantisation: QuantisationSettings = field(default_factory=QuantisationSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)

    @property
    def asked(self) -> list[Attack]:
        return [attack for attack in Attack if attack.name in self.run]

    def check(self, faults: Faults) -> None:
        names = [attack.name for attack in Attack]
        faults.need(
            set(self.run) <= set(names) and len(set(self.run)) == len(self.run),
            f"attacks.run among {', '.join(names)}, each once",
            attacks__run=self.run,
        )
        faults.need(
            self.num_prompts is None or self.num_prompts >= 1,
            "attacks.num_prompts >= 1 or null",
            attacks__num_prompts=self.num_prompts,
        )
        faults.need(0 <= self.seed < 2**32, "0 <= attacks.seed < 2**32", attacks__seed=self.seed)
        for part in (self.relearning, self.quantisation, self.sampling, self.prompts):
            part.check(faults)
