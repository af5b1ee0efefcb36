"""Where a run stands in its sweep: the pages beside it, and the same run with uniform weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rapidun.base.files import read_json
from rapidun.base.redact import hide_entries

# what makes the weights: without these two cells may be the same but for their weighting
WEIGHTING = ("mapping", "influence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """Relative to the run's folder."""

    href: str
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    sweep: Link
    place: int
    total: int
    previous: Link | None
    next: Link | None
    # folder of the same cell with uniform weights; None where none is planned, or it is that cell
    uniform: Path | None


class Plan:
    """The cells of a sweep as sweep.json plans them; empty where there is none."""

    def __init__(self, sweep_dir: Path) -> None:
        self.sweep_dir = sweep_dir
        path = sweep_dir / "sweep.json"
        plan = read_json(path) if path.is_file() else {}
        cells = plan.get("cells") if isinstance(plan, dict) else None
        self._cells: dict[str, list[str]] = {}
        for cell in cells if isinstance(cells, list) else []:
            if isinstance(cell, dict) and cell.get("hash"):
                self._cells[str(cell["hash"])] = _texts(cell.get("overrides"))
        every = [set(overrides) for overrides in self._cells.values()]
        self._shared = set.intersection(*every) if len(every) > 1 else set()
        self._places = {name: place for place, name in enumerate(self._cells)}
        self._uniform = {_without_weighting(own): name for name, own in self._cells.items() if "mapping=uniform" in own}

    def around(self, name: str) -> Neighbours | None:
        """The neighbours of a cell; None where the plan does not have it."""
        if name not in self._cells:
            return None
        names, place = list(self._cells), self._places[name]
        uniform = self._uniform.get(_without_weighting(self._cells[name]))
        return Neighbours(
            sweep=Link(href=f"../report.html#run={quote(name)}", words=self.sweep_dir.resolve().name),
            place=place + 1,
            total=len(names),
            previous=self._link(names[place - 1]) if place else None,
            next=self._link(names[place + 1]) if place + 1 < len(names) else None,
            uniform=None if uniform in (None, name) else self.sweep_dir / str(uniform),
        )

    def _link(self, name: str) -> Link:
        words = [text for text in self._cells[name] if text not in self._shared]
        return Link(href=f"../{quote(name)}/report.html", words=" ".join(words) or name)


def _texts(overrides: Any) -> list[str]:
    return [hide_entries(str(text)) for text in overrides] if isinstance(overrides, list) else []


def _without_weighting(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(text for text in overrides if text.lstrip("+~").split("=")[0].split(".")[0] not in WEIGHTING))
