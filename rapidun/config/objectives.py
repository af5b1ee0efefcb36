"""Hyperparameters of the unlearning objectives that have some of their own: one section each, `unlearning.npo.beta`.

Defaults are the authors' own. Where sources differ, the others are presets in conf/unlearning, each with its source.
"""

import math
from dataclasses import dataclass
from enum import Enum

from rapidun.config.parts import Faults


def _need_positive(faults: Faults, section: str, name: str, value: float) -> None:
    faults.need(
        value > 0 and math.isfinite(value), f"{section}.{name} > 0", **{f"{section}__{name}": value}
    )  # fmt: skip


def _need_not_negative(faults: Faults, section: str, name: str, value: float) -> None:
    faults.need(
        value >= 0 and math.isfinite(value), f"{section}.{name} >= 0", **{f"{section}__{name}": value}
    )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Npo:
    # inverse temperature of log p / p_r, summed over the response; towards 0 the term becomes gradient ascent
    beta: float = 0.1

    def check(self, faults: Faults) -> None:
        _need_positive(faults, "npo", "beta", self.beta)


@dataclass(kw_only=True, slots=True)
class SimNpo:
    # inverse temperature of the mean log p over the response
    beta: float = 4.5
    # reward margin, gamma in the paper: taken off inside the sigmoid, not multiplied by beta
    margin: float = 0.0

    def check(self, faults: Faults) -> None:
        _need_positive(faults, "simnpo", "beta", self.beta)
        faults.need(math.isfinite(self.margin), "a finite simnpo.margin", simnpo__margin=self.margin)


@dataclass(kw_only=True, slots=True)
class Dpo:
    # inverse temperature of the difference of the two responses' log p / p_r
    beta: float = 0.1

    def check(self, faults: Faults) -> None:
        _need_positive(faults, "dpo", "beta", self.beta)


@dataclass(kw_only=True, slots=True)
class Rmu:
    # decoder block whose output is steered, counted from 0; null = the last block of the first quarter of the model
    # (7 of 32, as published)
    layer: int | None = None
    # length of the vector that the activations are steered to, in units of an activation
    steering_coeff: float = 20.0
    # of the random direction
    seed: int = 0

    def check(self, faults: Faults) -> None:
        faults.need(self.layer is None or self.layer >= 0, "rmu.layer >= 0 or null", rmu__layer=self.layer)
        _need_not_negative(faults, "rmu", "steering_coeff", self.steering_coeff)
        faults.need(0 <= self.seed < 2**32, "0 <= rmu.seed < 2**32", rmu__seed=self.seed)


@dataclass(kw_only=True, slots=True)
class Undial:
    # what is taken off the reference's logit of each response token
    beta: float = 10.0

    def check(self, faults: Faults) -> None:
        _need_not_negative(faults, "undial", "beta", self.beta)


@dataclass(kw_only=True, slots=True)
class Wga:
    # power of a token's probability in its weight; 0 = gradient ascent
    beta: float = 5.0

    def check(self, faults: Faults) -> None:
        _need_not_negative(faults, "wga", "beta", self.beta)


@dataclass(kw_only=True, slots=True)
class SatImp:
    # power of p in a token's weight (saturation)
    b1: float = 5.0
    # power of 1 - p in a token's weight (importance)
    b2: float = 1.0

    def check(self, faults: Faults) -> None:
        _need_not_negative(faults, "satimp", "b1", self.b1)
        _need_not_negative(faults, "satimp", "b2", self.b2)


@dataclass(kw_only=True, slots=True)
class Ceu:
    # so many first response tokens are left out
    k: int = 1

    def check(self, faults: Faults) -> None:
        faults.need(self.k >= 0, "ceu.k >= 0", ceu__k=self.k)


@dataclass(kw_only=True, slots=True)
class Pdu:
    # the retain loss that is allowed: a little above that of the model before unlearning
    retain_loss_eps: float = 0.3
    # what lambda, the multiplier of the retain loss, starts from
    lambda_init: float = 100.0
    # step of lambda: max(0, lambda + dual_step_size * (retain loss - retain_loss_eps)), once an optimiser step
    dual_step_size: float = 5.0
    # epochs before lambda moves
    dual_warmup_epochs: float = 0.0

    def check(self, faults: Faults) -> None:
        for name in ("retain_loss_eps", "lambda_init", "dual_step_size", "dual_warmup_epochs"):
            _need_not_negative(faults, "pdu", name, getattr(self, name))


class Divergence(Enum):
    """Which f-divergence between template answer and forget answer is maximised."""

    tv = "tv"  # total variation
    kl = "kl"
    js = "js"  # Jensen-Shannon
    pearson = "pearson"


@dataclass(kw_only=True, slots=True)
class Flat:
    divergence: Divergence = Divergence.tv

    def check(self, faults: Faults) -> None:
        """Any divergence will do."""


@dataclass(kw_only=True, slots=True)
class Crow:
    # coefficient of the consistency loss beside the cross-entropy
    alpha: float = 5.5
    # how far the input embeddings are moved, each entry, in units of an embedding
    epsilon: float = 0.1

    def check(self, faults: Faults) -> None:
        _need_not_negative(faults, "crow", "alpha", self.alpha)
        _need_not_negative(faults, "crow", "epsilon", self.epsilon)
