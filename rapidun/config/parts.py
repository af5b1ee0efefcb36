"""Pieces that several config sections share: choices that say what they are, fault lists, LoRA, the optimiser."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

# the linear layers of a Llama, and of most that came after it
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# in `lora.target_modules`: every linear layer but the output head
ALL_LINEAR = "all_linear"


class Choice(Enum):
    """An Enum whose members say what they are: `shuffled = WeightingTraits(...)`; typed by name, like any other."""

    def __new__(cls, traits: Any) -> "Choice":
        member = object.__new__(cls)
        # numbers of their own: two members with equal traits are two choices
        member._value_ = len(cls.__members__)
        return member

    def __init__(self, traits: Any) -> None:
        self.traits = traits


def add_choice(choices: type[Choice], name: str, traits: Any) -> Any:
    """Give an Enum of choices one more member, which an extension brings."""
    member: Any = object.__new__(choices)
    member.__init__(traits)
    member._name_, member._value_, member.__objclass__ = name, len(choices.__members__), choices
    made: Any = choices
    made._member_names_.append(name)
    made._member_map_[name] = member
    made._value2member_map_[member._value_] = member
    # the Enum itself refuses new attributes
    type.__setattr__(choices, name, member)
    return member


class Faults(list[str]):
    """Collects what is wrong with one config section, so that all of it is reported at once."""

    def __init__(self, section: str) -> None:
        super().__init__()
        self.section = section

    def need(self, holds: bool, expected: str, **came: object) -> None:
        """Record a fault unless `holds`. `came` names the keys (dots as `__`) and the values that came."""
        if holds:
            return
        named = {key.replace("__", "."): value for key, value in came.items()}
        got = ", ".join(f"{key}={value}" for key, value in named.items())
        first = next(iter(named))
        self.append(
            f"{self.section}: need {expected}, got {got}. "
            f"Change conf/{self.section}/*.yaml or pass {self.section}.{first}=..."
        )


@dataclass(kw_only=True, slots=True)
class LoraSettings:
    """peft's LoraConfig, the part that is swept."""

    r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    # names of nn.Linear modules, matched by their last component; all_linear = every one but the output head
    target_modules: Any = ALL_LINEAR

    def check(self, faults: Faults, prefix: str = "lora") -> None:
        faults.need(self.r >= 1, f"{prefix}.r >= 1", **{f"{prefix}__r": self.r})
        faults.need(self.lora_alpha > 0, f"{prefix}.lora_alpha > 0", **{f"{prefix}__lora_alpha": self.lora_alpha})
        faults.need(
            0.0 <= self.lora_dropout < 1.0,
            f"0 <= {prefix}.lora_dropout < 1",
            **{f"{prefix}__lora_dropout": self.lora_dropout},
        )
        faults.need(
            bool(self.targets) and all(isinstance(name, str) and name.strip() for name in self.targets),
            f"{ALL_LINEAR}, or a list of names, in {prefix}.target_modules",
            **{f"{prefix}__target_modules": self.target_modules},
        )

    @property
    def targets(self) -> list[Any]:
        """`target_modules` as a list, however it was written."""
        return list(self.target_modules) if isinstance(self.target_modules, list | tuple) else [self.target_modules]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerTraits:
    # TrainingArguments.optim
    optim: str
    # whether it reads `momentum`
    momentum: bool = False


class Optimizer(Choice):
    """Optimisers that need nothing but torch and transformers, and run on a CPU as well."""

    traits: OptimizerTraits

    adamw = OptimizerTraits(optim="adamw_torch_fused")
    sgd = OptimizerTraits(optim="sgd", momentum=True)
    rmsprop = OptimizerTraits(optim="rmsprop", momentum=True)
    adagrad = OptimizerTraits(optim="adagrad")
    # at the given learning rate, not at one relative to the weights
    adafactor = OptimizerTraits(optim="adafactor")


SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")


@dataclass(kw_only=True, slots=True)
class OptimiserSettings:
    """What transformers' Trainer needs to take steps; names are those of TrainingArguments."""

    # null = by the model's size (model=hf), so are the other settings that may be null
    learning_rate: float | None = 6e-5
    num_train_epochs: float | None = 2.0
    # > 0 ends training after that many optimiser steps, whatever num_train_epochs says
    max_steps: int = -1
    gradient_accumulation_steps: int | None = 1
    lr_scheduler_type: str = "cosine"
    # share of the steps over which the learning rate rises
    warmup_ratio: float = 0.0
    optimizer: Optimizer = Optimizer.adamw
    # of sgd and rmsprop
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    # optimiser steps between checkpoints; 0 = none (a killed stage then starts again)
    save_steps: int = 50
    gradient_checkpointing: bool = False

    @property
    def idle_optimiser(self) -> set[str]:
        """Settings that change nothing as they stand and that came after others: fingerprints leave them out, so that
        what was made before they were there is still found."""
        idle = {"optimizer"} if self.optimizer is Optimizer.adamw else set[str]()
        return idle | (set() if self.optimizer.traits.momentum and self.momentum else {"momentum"})

    def check_optimiser(self, faults: Faults) -> None:
        faults.need(
            self.learning_rate is None or self.learning_rate > 0, "learning_rate > 0", learning_rate=self.learning_rate
        )
        faults.need(
            self.max_steps > 0 or self.max_steps == -1,
            "max_steps > 0, or -1 for as many as num_train_epochs says",
            max_steps=self.max_steps,
        )
        faults.need(
            self.max_steps > 0 or self.num_train_epochs is None or self.num_train_epochs > 0,
            "num_train_epochs > 0 or max_steps > 0",
            num_train_epochs=self.num_train_epochs,
            max_steps=self.max_steps,
        )
        faults.need(
            self.gradient_accumulation_steps is None or self.gradient_accumulation_steps >= 1,
            "gradient_accumulation_steps >= 1",
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )
        faults.need(
            self.lr_scheduler_type in SCHEDULES,
            f"lr_scheduler_type one of {', '.join(SCHEDULES)}",
            lr_scheduler_type=self.lr_scheduler_type,
        )
        faults.need(0.0 <= self.warmup_ratio < 1.0, "0 <= warmup_ratio < 1", warmup_ratio=self.warmup_ratio)
        faults.need(0.0 <= self.momentum < 1.0, "0 <= momentum < 1", momentum=self.momentum)
        faults.need(
            self.momentum == 0 or self.optimizer.traits.momentum,
            f"momentum=0 with optimizer={self.optimizer.name}, which has none of that kind",
            momentum=self.momentum,
        )
        faults.need(self.weight_decay >= 0, "weight_decay >= 0", weight_decay=self.weight_decay)
        faults.need(self.max_grad_norm >= 0, "max_grad_norm >= 0 (0 = no clipping)", max_grad_norm=self.max_grad_norm)
        faults.need(self.save_steps >= 0, "save_steps >= 0 (0 = no checkpoints)", save_steps=self.save_steps)
