"""sweep.budget: what damage a cell may do to be chosen, an expression over its metrics (expressions.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple

from rapidun.base.errors import ConfigError
from rapidun.config.expressions import ERRORS, Expression

SETTING = "sweep.budget"
EXAMPLE = "ppl_clean <= 1.02 * before.ppl_clean"


class Place(Enum):
    """Where a finished cell stands."""

    within = "within"
    outside = "outside"
    unknown = "unknown"  # a metric that is asked for was not measured, or the expression cannot be worked out


class Verdict(NamedTuple):
    """What a budget says of one cell's metrics."""

    place: Place
    # one number for each part of the outermost `and`: above 0 = missed, by that share of the bound; empty if unknown
    excesses: tuple[float, ...] = ()
    # why it is unknown
    why: str = ""

    @property
    def excess(self) -> float:
        """How far outside: the sum over the parts that are missed; infinite where it is unknown."""
        return float("inf") if self.place is Place.unknown else sum(one for one in self.excesses if one > 0)

    @property
    def text(self) -> str:
        """`4.2 % of the bound and 0.5 % of the bound`: the parts that are missed."""
        return " and ".join(f"{100 * one:.3g} % of the bound" for one in self.excesses if one > 0)


class Budget:
    """An expression over metrics that is true or false, checked and ready to be asked about cells.

    Args: fault: what is wrong with a metric's name; None where it is known. setting: what it is the value of.
    Raises: ConfigError if it is none, asks for no metric, is not true or false, or names something unknown.
    """

    def __init__(
        self, text: str, *, fault: Callable[[str], str | None] = lambda name: None, setting: str = SETTING
    ) -> None:
        self.text = text
        self._expression = Expression(text, setting=setting, example=EXAMPLE, fault=fault)
        change = f"Pass {setting}={EXAMPLE!r}" if "." in setting else f"Pass {setting} {EXAMPLE!r}"
        if not self._expression.names:
            raise ConfigError(
                f"{setting}: need a bound on metrics of the results, got {text!r}, which is the same for every cell. "
                f"{change}"
            )
        if not self._expression.decides:
            raise ConfigError(
                f"{setting}: need an expression that is true or false, got {text!r}. Compare it with something: "
                f"{EXAMPLE!r}"
            )
        try:
            self._expression.excesses(lambda name: 0.5)
        except ERRORS as error:
            if isinstance(error, ArithmeticError):
                return  # other numbers may do: 1 / (asr_seen - 0.5)
            raise ConfigError(f"{setting}: {text!r} cannot be worked out: {error}. {change}") from None

    @property
    def names(self) -> list[str]:
        """The metrics that it asks for."""
        return self._expression.names

    @property
    def num_parts(self) -> int:
        """Of the outermost `and`: as many excesses has a verdict."""
        return self._expression.num_parts

    def judge(self, metrics: Mapping[str, float]) -> Verdict:
        """Where a cell with these metrics stands."""
        missing = [name for name in self.names if name not in metrics]
        if missing:
            return Verdict(Place.unknown, why=f"without {', '.join(missing)}")
        try:
            excesses = tuple(self._expression.excesses(metrics.__getitem__))
        except ERRORS as error:
            return Verdict(Place.unknown, why=f"cannot be worked out: {error}")
        held = all(one <= 0 for one in excesses)
        return Verdict(Place.within if held else Place.outside, excesses)
