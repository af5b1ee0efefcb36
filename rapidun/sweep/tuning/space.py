"""The search space: swept keys as optuna's distributions, and the values of a trial as overrides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ConfigError
from rapidun.config.grid import Axis, Kind
from rapidun.sweep.pruning import import_optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial


class Space:
    """The swept keys as optuna's distributions, and trials' values as overrides.

    a=1,2 is categorical; range(..) is a grid of numbers; interval(..) every number between, int(interval(..)) every
    whole one, tag(log,interval(..)) on a logarithmic scale.

    Raises: ConfigError with every axis that cannot be searched.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = list(axes)
        faults = [fault for axis in axes if (fault := _axis_fault(axis))]
        if not axes:
            faults.append(
                "hydra/sweeper=rapidun_optuna: need a key to search, got none. Pass e.g. "
                "'mapping.tau_f=interval(0.2,2)'"
            )
        if faults:
            raise ConfigError(faults)
        optuna = import_optuna()
        self.distributions: dict[str, BaseDistribution] = {axis.key: _distribution(axis, optuna) for axis in axes}

    def suggest(self, trial: Trial, key: str) -> None:
        """Let the sampler give the trial a value for a key; one that it has already stays."""
        wanted: Any = self.distributions[key]
        axis = next(axis for axis in self.axes if axis.key == key)
        if axis.kind is Kind.choice:
            trial.suggest_categorical(key, wanted.choices)
        elif _is_whole(axis):
            trial.suggest_int(key, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
        else:
            trial.suggest_float(key, wanted.low, wanted.high, step=wanted.step, log=wanted.log)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What runs: numbers between bounds with six digits, all others exactly as they were given."""
        return {axis.key: _value(axis, params[axis.key]) for axis in self.axes if axis.key in params}

    def row(self, params: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
        """One trial's overrides, and its values as people write them."""
        overrides, labels = [], {}
        for axis in self.axes:
            value = params[axis.key]
            if axis.kind is Kind.interval:
                labels[axis.key] = repr(_value(axis, value))
                overrides.append(f"{axis.prefix}{labels[axis.key]}")
            else:
                index = _index(axis, value)
                labels[axis.key] = axis.label(index)
                overrides.append(axis.override(index))
        return overrides, labels

    def probes(self) -> list[dict[str, Any]]:
        """Three points, to see whether anything of the space is a valid configuration: middle, low, high."""
        return [{axis.key: _at(axis, share) for axis in self.axes} for share in (0.5, 0.0, 1.0)]

    def describe(self) -> dict[str, str]:
        return {axis.key: _describe(axis) for axis in self.axes}


def _index(axis: Axis, value: Any) -> int:
    """Where a trial's value stands among the axis's values."""
    if axis.kind is Kind.choice:
        return axis.texts.index(value)
    return min(range(len(axis.values)), key=lambda index: abs(axis.values[index] - value))


def _value(axis: Axis, value: Any) -> Any:
    if axis.kind is Kind.choice:
        return axis.label(_index(axis, value))
    if axis.kind is Kind.range:
        return axis.values[_index(axis, value)]
    low, high = axis.bounds
    # more digits change nothing but the length of every table
    return value if _is_whole(axis) else min(max(float(f"{value:.6g}"), low), high)


def _axis_fault(axis: Axis) -> str:
    if axis.kind is Kind.interval:
        low, high = axis.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            return f"{axis.key}: need interval(low,high) with low < high, got interval({low},{high}). Change it"
        if "log" in axis.tags and low <= 0:
            return f"{axis.key}: need low > 0 on a logarithmic scale, got interval({low},{high}). Change it"
    elif not axis.values:
        return f"{axis.key}: need at least one value, got a pattern that no file matches. Change {axis.key}=glob(...)"
    elif "log" in axis.tags:
        return f"{axis.key}: only intervals have a logarithmic scale. Pass {axis.key}=tag(log,interval(low,high))"
    return ""


def _distribution(axis: Axis, optuna: Any) -> BaseDistribution:
    made = optuna.distributions
    if axis.kind is Kind.choice:
        # as Hydra takes them: the same text, the same cell
        return made.CategoricalDistribution(tuple(dict.fromkeys(axis.texts)))
    if axis.kind is Kind.interval:
        low, high = axis.bounds
        log = "log" in axis.tags
        if _is_whole(axis):
            return made.IntDistribution(low, high, log=log)
        return made.FloatDistribution(low, high, log=log)
    low, high = min(axis.values), max(axis.values)
    step = abs(axis.bounds[2])
    if _is_whole(axis):
        return made.IntDistribution(low, high, step=int(step))
    # the last value lies a whole number of steps above the first, up to rounding
    return made.FloatDistribution(low, low + round((high - low) / step) * step, step=step)


def _is_whole(axis: Axis) -> bool:
    return all(isinstance(number, int) for number in (axis.bounds if axis.kind is Kind.interval else axis.values))


def _at(axis: Axis, share: float) -> Any:
    """The value `share` of the way along an axis."""
    if axis.kind is Kind.choice:
        return axis.texts[round(share * (len(axis.texts) - 1))]
    if axis.kind is Kind.range:
        return sorted(axis.values)[round(share * (len(axis.values) - 1))]
    low, high = axis.bounds
    if "log" in axis.tags:
        # exp(log(x)) is not quite x
        value = min(max(low ** (1 - share) * high**share, low), high)
    else:
        value = low * (1 - share) + high * share
    return round(value) if _is_whole(axis) else float(value)


def _describe(axis: Axis) -> str:
    if axis.kind is Kind.interval:
        words = ["whole numbers"] if _is_whole(axis) else []
        words += ["logarithmic"] if "log" in axis.tags else []
        return f"{axis.bounds[0]:g} to {axis.bounds[1]:g}" + (f" ({', '.join(words)})" if words else "")
    if axis.kind is Kind.range:
        return f"{min(axis.values):g} to {max(axis.values):g} in steps of {abs(axis.bounds[2]):g}"
    return ", ".join(axis.label(index) for index in range(len(axis.texts)))
