"""What goes around any unlearning objective: sharpness-aware steps, what trains, what is kept, when it is enough."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from rapidun.base.errors import ConfigError
from rapidun.config.expressions import ERRORS, Expression
from rapidun.config.parts import Choice, Faults


@dataclass(kw_only=True, slots=True)
class SamSettings:
    """Sharpness-aware unlearning (arXiv 2502.05374)."""

    # length of the step towards a larger forget loss at which its gradient is taken; 0 = off (published 0.01)
    rho: float = 0.0


class Target(Enum):
    """Which weights train."""

    lora = "lora"  # an adapter
    full = "full"  # all; a model is written in place of an adapter


class Keep(Enum):
    """Which weights are the result."""

    last = "last"
    best = "best"  # those of the evaluation that was best by `criterion`


@dataclass(frozen=True, kw_only=True, slots=True)
class CriterionTraits:
    # -1: smaller is better, 1: larger is better
    better: int
    # the setting that it is measured with: eval_asr, or either of the two
    asr: bool = False
    # a split of the pack, or "pairs" of both responses to a forget row
    needs: str = ""


class Criterion(Choice):
    """The numbers that are measured while unlearning goes on, by the names that they are logged under."""

    traits: CriterionTraits

    val_asr_seen = CriterionTraits(better=-1, asr=True, needs="val_seen_trig")
    val_asr_ood = CriterionTraits(better=-1, asr=True, needs="val_ood_trig")
    val_loss_clean = CriterionTraits(better=-1, needs="val_clean")
    val_ppl_clean = CriterionTraits(better=-1, asr=True, needs="val_clean")
    forget_loss_poisoned = CriterionTraits(better=1)
    forget_loss_clean = CriterionTraits(better=-1, needs="pairs")
    forget_preference = CriterionTraits(better=-1, needs="pairs")


class Stop:
    """unlearning.stop_when: training ends with the first evaluation, after the first step, at which it holds.

    Raises: ConfigError if it is no expression over the names of Criterion.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        names = ", ".join(one.name for one in Criterion)

        def fault(name: str) -> str | None:
            known = name in Criterion.__members__
            return None if known else f"need numbers among {names}; got {name}"

        self._expression = Expression(
            text, setting="unlearning.stop_when", example="val_asr_seen <= 0.02", fault=fault
        )  # fmt: skip

    @property
    def criteria(self) -> list[Criterion]:
        return [Criterion[name] for name in self._expression.names]

    def holds(self, measured: Mapping[str, float]) -> bool:
        """Whether it is enough; False where a number that it asks for was not measured.

        Raises: ConfigError if it cannot be worked out or is not true or false.
        """
        if not all(name in measured for name in self._expression.names):
            return False
        value: Callable[[str], float] = measured.__getitem__
        try:
            result = self._expression.value(value)
        except ERRORS as error:
            raise ConfigError(
                f"unlearning.stop_when: {self.text!r} cannot be worked out: {error}. Pass unlearning.stop_when=..."
            ) from None
        if not isinstance(result, bool):
            raise ConfigError(
                f"unlearning.stop_when: need an expression that is true or false, got {self.text!r}, which is "
                f"{result!r}. Compare it with something"
            )
        return result


def check_stop(faults: Faults, text: str | None) -> Stop | None:
    """The condition, if it is one; what is wrong with it goes to `faults`."""
    if text is None:
        return None
    try:
        stop = Stop(text)
        if not stop.criteria:
            raise ConfigError(
                f"unlearning.stop_when: need a condition on what is measured, such as 'val_asr_seen <= 0.02', got "
                f"{text!r}. Pass unlearning.stop_when=..."
            )
        # true or false whatever the numbers are; a division that fails at 0.5 would fail the run late
        stop.holds({one.name: 0.5 for one in stop.criteria})
    except ConfigError as error:
        faults.extend(error.faults)
        return None
    return stop
