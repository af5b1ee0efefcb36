"""Lines of metrics.jsonl, {"time", "stage", "step", name: number...}: written, read back, told once."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.files import writing
from rapidun.base.grown import append_line, read_grown

OWN = ("time", "stage", "step")
# what makes a line one of ours
KEYS = ("stage", "step")


def write_line(path: Path, row: dict[str, Any]) -> None:
    """Append one line; JSON has no NaN: such a number is written as null."""
    with writing(path):
        append_line(path, {key: None if isinstance(v, float) and v - v != 0 else v for key, v in row.items()})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a kill or a full disk may have cut one. Empty where there is no file."""
    return read_grown(path, *KEYS)[0]


def without_repeats(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what a restarted stage logged twice.

    Of a stage's lines with the same step and names the last one stays; of those without a step, of equal ones.
    """
    last = {_known_by(line): i for i, line in enumerate(lines)}
    return [line for i, line in enumerate(lines) if last[_known_by(line)] == i]


def _known_by(line: dict[str, Any]) -> tuple[Any, ...]:
    names = sorted(line)
    if line["step"] is not None:
        return (line.get("stage"), line["step"], *names)
    return (None, *((name, line[name]) for name in names if name != "time"))


class Point(NamedTuple):
    """Numbers of one stage at one step."""

    stage: str
    metrics: dict[str, float]
    step: int | None


class History:
    """What a service has been told, so that it hears nothing twice and no curve goes back."""

    def __init__(self) -> None:
        # `<stage>/<name>` -> newest step
        self._newest: dict[str, int] = {}
        self._told: set[str] = set()

    def presume(self, told: Iterable[str], steps: dict[str, int]) -> None:
        """Take over what an earlier process told: `<stage>/<name>`, and the newest step of each stage."""
        for name in told:
            self._told.add(name)
            stage = name.partition("/")[0]
            if stage in steps:
                self._newest[name] = steps[stage]

    def live(self, stage: str, metrics: dict[str, float], step: int | None) -> dict[str, float]:
        """What is new of what a stage says now."""
        names = {name: f"{stage}/{name}" for name in metrics}
        if step is None:
            self._told.update(names.values())
            return dict(metrics)
        new = {name: value for name, value in metrics.items() if self._newest.get(names[name], -1) < step}
        for name in new:
            self._newest[names[name]] = step
            self._told.add(names[name])
        return new

    def again(self, lines: Iterable[dict[str, Any]]) -> Iterator[Point]:
        """What is new in lines of metrics.jsonl; a number without a step is told only where its name was not."""
        told = set(self._told)
        for line in lines:
            stage, step = str(line["stage"]), line["step"]
            metrics = {name: value for name, value in line.items() if name not in OWN and value is not None}
            if step is None:
                metrics = {name: value for name, value in metrics.items() if f"{stage}/{name}" not in told}
            new = self.live(stage, metrics, step)
            if new:
                yield Point(stage, new, step)
