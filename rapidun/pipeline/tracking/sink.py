"""What a service that listens to a run is told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rapidun.base.preemption import Preempted, Pruned
from rapidun.base.redact import hide
from rapidun.base.text import first_line
from rapidun.pipeline.tracking.lines import History, read_lines, without_repeats


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """A stage that is really computed. Several may be under way: a start model is made while poison waits for it."""

    stage: str
    # the store's name for the result: `model` is made within the stage `poison`
    kind: str
    fingerprint: str
    inputs: dict[str, Any] = field(default_factory=dict)
    # `kind/fingerprint` of the artifacts that it reads
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The same wherever and whenever this result is made."""
        return f"{self.stage}-{self.fingerprint}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a run or a stage ended. `state`: done | failed | preempted (it will go on) | pruned."""

    state: str
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.state in ("done", "pruned")


class Sink(Protocol):
    """A service that is told what a run does; any Exception it raises ends the service's part in the run."""

    # as users know it
    name: str

    def start_stage(self, execution: Execution) -> None: ...

    def catch_up_stage(self, execution: Execution, lines: Sequence[dict[str, Any]]) -> None:
        """What a killed attempt at this stage had logged."""

    def log(self, stage: str, metrics: dict[str, float], step: int | None) -> None: ...

    def finish_stage(self, execution: Execution, artifact: Path, manifest: dict[str, Any]) -> None: ...

    def fail_stage(self, execution: Execution, ending: Ending) -> None: ...

    def finish(self, ending: Ending, run_dir: Path) -> str | None:
        """Close everything; return a line worth printing, or None."""

    def abandon(self) -> None:
        """Let go after a fault, so that the next run of this process is not touched by it."""


class CurveSink:
    """What services have in common whose stages are no runs but prefixes of the curves' names."""

    def __init__(self) -> None:
        self._history = History()

    def start_stage(self, execution: Execution) -> None:
        """Stages are prefixes here, not runs."""

    def catch_up_stage(self, execution: Execution, lines: Sequence[dict[str, Any]]) -> None:
        for point in self._history.again(lines):
            self._write(*point)

    def log(self, stage: str, metrics: dict[str, float], step: int | None) -> None:
        self._write(stage, self._history.live(stage, metrics, step), step)

    def finish_stage(self, execution: Execution, artifact: Path, manifest: dict[str, Any]) -> None:
        """Pictures and tables come once, at the end, from the run folder."""

    def fail_stage(self, execution: Execution, ending: Ending) -> None:
        """The state of the run says so at the end."""

    def _catch_up(self, run_dir: Path) -> None:
        for point in self._history.again(without_repeats(read_lines(run_dir / "metrics.jsonl"))):
            self._write(*point)

    def _write(self, stage: str, metrics: dict[str, float], step: int | None) -> None:
        """Hand new numbers on."""
        raise NotImplementedError


def ending_of(failed: bool | BaseException, metrics: dict[str, Any] | None = None) -> Ending:
    """Say how something ended by what ended it; Preempted and Pruned are no failures. Secrets are hidden."""
    metrics = metrics or {}
    if failed is False:
        return Ending(state="done", metrics=metrics)
    if failed is True:
        return Ending(state="failed", metrics=metrics)
    state = "preempted" if isinstance(failed, Preempted) else "pruned" if isinstance(failed, Pruned) else "failed"
    return Ending(state=state, metrics=metrics, error=hide(first_line(failed)))
