"""What a pattern finds and cannot stand in a grid: `mapping=glob(*)` finds `file`, which needs files that nobody named.

A value is left out, and said to be, where its cells have a fault that cells of another value of the pattern, equal in
everything else, do not have. What is wrong whatever the value is stays a fault.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Sifted(NamedTuple):
    """`left_out`: places of the cells to leave out. `notes`: one line for each value and reason. `faults`: the rest."""

    left_out: set[int]
    notes: list[str]
    faults: list[str]


def sift(axes: Sequence[Mapping[str, str]], faults: Sequence[Sequence[str]], patterns: Mapping[str, str]) -> Sifted:
    """Args: axes: of each cell, its values by key. faults: of each cell. patterns: swept key -> `glob(*)`."""
    known: dict[tuple[object, ...], list[set[str]]] = {}
    for own, found in zip(axes, faults, strict=True):
        for key in patterns:
            known.setdefault(_beside(own, key), []).append(set(found))
    left_out: set[int] = set()
    why: dict[tuple[str, str], dict[str, None]] = {}
    places: dict[tuple[str, str], set[int]] = {}
    rest: dict[str, None] = {}
    for place, (own, found) in enumerate(zip(axes, faults, strict=True)):
        for fault in found:
            keys = [key for key in patterns if any(fault not in other for other in known[_beside(own, key)])]
            if not keys:
                rest[fault] = None
                continue
            left_out.add(place)
            named = (keys[0], own[keys[0]])
            why.setdefault(named, {})[fault] = None
            places.setdefault(named, set()).add(place)
    if not rest and len(left_out) == len(axes):
        # nothing is left to run: then all of it is wrong
        return Sifted(set(), [], list(dict.fromkeys(fault for found in faults for fault in found)))
    notes = []
    for (key, value), reasons in why.items():
        total, number = sum(own[key] == value for own in axes), len(places[key, value])
        some = f" in {number} of its {total} cells" if number < total else ""
        notes.append(f"{key}={patterns[key]} leaves out {value}{some}: {'; '.join(reasons)}")
    return Sifted(left_out, notes, list(rest))


def _beside(axes: Mapping[str, str], key: str) -> tuple[object, ...]:
    """What cells share that differ in this key alone."""
    return (key, *((other, value) for other, value in axes.items() if other != key))
