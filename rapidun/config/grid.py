"""The grid of a sweep: from overrides with several values to rows of overrides with one value each."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep

from rapidun.base.errors import ConfigError
from rapidun.config import keys
from rapidun.config.overrides import parse

# of one sweep; more is a slip of the pen
MAX_CELLS = 100_000


class Kind(Enum):
    """How the values of an axis were given."""

    choice = "choice"  # a=1,2, a=choice(1,2), group=glob(*)
    range = "range"  # a=range(1,5,0.5)
    interval = "interval"  # a=interval(0.1,1): every number between, for a sweeper that picks its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One swept override."""

    # without + or ++
    key: str
    # what the override begins with: `key=`, or `++key=`
    prefix: str
    kind: Kind
    # plain values in the order in which they run; empty for an interval
    values: tuple[Any, ...] = ()
    # the same as Hydra takes them
    texts: tuple[str, ...] = ()
    # interval: (start, end), whole numbers under int(interval(..)); range: (start, stop, step)
    bounds: tuple[float, ...] = ()
    # tag(log,interval(1,9)) has log
    tags: frozenset[str] = frozenset()
    # the values are files of a config group
    is_group: bool = False
    # glob(*) as it was typed: the values are what there is, and nobody named them one by one
    pattern: str = ""

    def override(self, index: int) -> str:
        """The axis with one of its values, as Hydra takes it; a group without a file is ~group there."""
        if self.is_group and self.values[index] is None:
            return f"~{self.key}"
        return self.prefix + self.texts[index]

    def label(self, index: int) -> str:
        """The value as people write it: text without its quotes, everything else as Hydra takes it."""
        value = self.values[index]
        return value if isinstance(value, str) else self.texts[index]


@dataclass(frozen=True, slots=True)
class Grid:
    """`parts` are all overrides in the order of the command line: fixed ones, and axes."""

    parts: tuple[str | Axis, ...]
    # positions in `axes` of the axes that advance together; every axis is in one bundle
    bundles: tuple[tuple[int, ...], ...]

    @property
    def axes(self) -> list[Axis]:
        return [part for part in self.parts if isinstance(part, Axis)]

    def __len__(self) -> int:
        axes = self.axes
        return prod(len(axes[bundle[0]].values) for bundle in self.bundles)

    def rows(self) -> Iterator[tuple[list[str], dict[str, str]]]:
        """The overrides of each cell and its axes' values by key; the last bundle changes fastest."""
        axes = self.axes
        lengths = [range(len(axes[bundle[0]].values)) for bundle in self.bundles]
        for steps in itertools.product(*lengths):
            at = {axis: step for bundle, step in zip(self.bundles, steps, strict=True) for axis in bundle}
            number = itertools.count()
            overrides = [part if isinstance(part, str) else part.override(at[next(number)]) for part in self.parts]
            yield overrides, {axis.key: axis.label(at[place]) for place, axis in enumerate(axes)}


def read_axis(override: Override, *, groups: Mapping[str, Sequence[str]]) -> Axis:
    """Read a swept override. shuffle(...) is seeded by its own text, so that the same command is the same sweep.

    Args: groups: the choices of each config group, for glob.
    """
    sweep: Any = override.value()
    key = override.key_or_group
    prefix = f"{override.get_key_element()}="
    is_group = key in groups
    if isinstance(sweep, IntervalSweep):
        return Axis(
            key=key,
            prefix=prefix,
            kind=Kind.interval,
            bounds=(_number(sweep.start), _number(sweep.end)),
            tags=frozenset(sweep.tags),
        )
    bounds: tuple[float, ...] = ()
    if isinstance(sweep, Glob):
        # files in sub-folders are parts of other files, not choices of their own
        elements: list[Any] = sweep.filter([name for name in groups.get(key, ()) if "/" not in name])
    elif isinstance(sweep, RangeSweep):
        elements = list(sweep.range())
        bounds = (_number(sweep.start), _number(sweep.stop), _number(sweep.step))
    elif isinstance(sweep, ChoiceSweep):
        elements = list(sweep.list)
    else:
        raise TypeError(f"not a sweep: {override.input_line}")
    if isinstance(sweep, RangeSweep | ChoiceSweep) and sweep.shuffle:
        random.Random(override.input_line).shuffle(elements)
    return Axis(
        key=key,
        prefix=prefix,
        kind=Kind.range if isinstance(sweep, RangeSweep) else Kind.choice,
        values=tuple(Override._convert_value(element) for element in elements),
        texts=tuple(Override._get_value_element_as_str(element) for element in elements),
        bounds=bounds,
        tags=frozenset(getattr(sweep, "tags", ())),
        is_group=is_group,
        pattern=str(override.input_line).partition("=")[2] if isinstance(sweep, Glob) else "",
    )


def _number(value: Any) -> float:
    """A bound as a plain number; Hydra keeps those of ranges as they were read."""
    return value if isinstance(value, int) else float(value)


def read_parts(overrides: Sequence[str], *, groups: Mapping[str, Sequence[str]]) -> tuple[str | Axis, ...]:
    """Read checked overrides into fixed ones and axes.

    An override replaces an earlier one of the same key, in its place, as in Hydra's own sweeper; only new entries of a
    field with free entries (++data.families={D: ...}) stand side by side.
    """
    parts: dict[str, str | Axis] = {}
    for place, text in enumerate(overrides):
        override = parse(text)
        # ~experiment is the group without a file, so it replaces experiment=x
        name = override.key_or_group if override.key_or_group in groups else override.get_key_element()
        if override.is_sweep_override():
            parts[name] = read_axis(override, groups=groups)
            continue
        entry = override.is_force_add() and isinstance(override.value(), dict)
        element = override.get_key_element()
        spelt = element if override.is_delete() else f"{element}={override.get_value_element_as_str()}"
        parts[f"{name} {place}" if entry else name] = spelt
    return tuple(parts.values())


def make_grid(parts: Sequence[str | Axis], zipped: Sequence[Sequence[str]] = ()) -> Grid:
    """Bundle the axes that advance together (`zipped`: groups of keys); every other axis is a bundle of its own.

    A bundle stands where the first of its axes stands.

    Raises: ConfigError with every fault: a key that is not swept or stands in two groups, unequal lengths, an interval,
        no values, too many cells.
    """
    axes = [part for part in parts if isinstance(part, Axis)]
    faults = [_no_values(axis) for axis in axes if not axis.values]
    if not faults:
        places = {axis.key: place for place, axis in enumerate(axes)}
        bundles, faults = _bundles(axes, places, zipped)
    if faults:
        raise ConfigError(faults)
    grid = Grid(tuple(parts), bundles)
    if len(grid) > MAX_CELLS:
        counts = " x ".join(str(len(axes[bundle[0]].values)) for bundle in bundles)
        raise ConfigError(f"sweep: need at most {MAX_CELLS} cells, got {counts} = {len(grid)}. Give fewer values")
    return grid


def _bundles(
    axes: Sequence[Axis], places: Mapping[str, int], zipped: Sequence[Sequence[str]]
) -> tuple[tuple[tuple[int, ...], ...], list[str]]:
    faults: list[str] = []
    taken: dict[int, tuple[int, ...]] = {}
    for group in zipped:
        found: list[int] = []
        for name in group:
            place = places.get(name, places.get(f"{name}.path"))
            if place is None:
                faults.append(_not_swept(name, places))
            elif place in taken or place in found:
                faults.append(f"sweep.zip: need each axis in one group, got {name} twice. Change sweep.zip=...")
            else:
                found.append(place)
        lengths = {axes[place].key: len(axes[place].values) for place in found}
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{key} with {length}" for key, length in lengths.items())
            faults.append(
                f"sweep.zip: need axes with equally many values in a group, got {got}. "
                f"Give them equally many values or change sweep.zip=..."
            )
        taken.update(dict.fromkeys(found, tuple(found)))
    bundles = dict.fromkeys(taken.get(place, (place,)) for place in range(len(axes)))
    return tuple(bundles), faults


def _not_swept(name: str, places: Mapping[str, int]) -> str:
    close = keys.nearest(name, places)
    swept = f"the swept keys are {', '.join(places)}" if places else "nothing is swept"
    guess = f"did you mean {close}?" if close else f"Pass {name}=VALUE,VALUE or change sweep.zip=..."
    return f"sweep.zip: need keys with several values, got {name}; {swept}; {guess}"


def _no_values(axis: Axis) -> str:
    if axis.kind is Kind.interval:
        return (
            f"{axis.key}: need values to try, such as {axis.key}=1,2, got an interval, which has no cells to count. "
            f"Pass hydra/sweeper=rapidun_optuna"
        )
    return f"{axis.key}: need at least one value, got a pattern that no file matches. Change {axis.key}=glob(...)"
