"""The tracker of one run: metrics.jsonl, the console, and the services that the configuration names."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base import processes
from rapidun.base.redact import hide
from rapidun.base.text import first_line
from rapidun.base.tracker import Tracker
from rapidun.pipeline.tracking.lines import read_lines, without_repeats, write_line
from rapidun.pipeline.tracking.packages import need_package
from rapidun.pipeline.tracking.sink import Ending, Execution, Sink, ending_of
from rapidun.pipeline.tracking.tensorboard import TensorboardSink
from rapidun.pipeline.tracking.trackio import TrackioSink
from rapidun.pipeline.tracking.wandb.sink import WandbSink

if TYPE_CHECKING:
    from rapidun.config.run import RunConfig

Observer = Callable[[str, dict[str, float], int | None], None]


class RunTracker(Tracker):
    """Appends every number to metrics.jsonl and hands it on to the console, to services and to observers."""

    def __init__(
        self,
        path: Path,
        *,
        on_progress: Callable[[int, int, str], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self.stage = ""
        # called with every log line (stage, metrics, step); what they raise ends the run
        self.observers: list[Observer] = []
        self._path = path
        self._artifact_path: Path | None = None
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._on_note = on_note or print
        self._sinks: list[Sink] = []
        self._under_way: list[Execution] = []

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def begin(self, stage: str, artifact_path: Path | None = None) -> tuple[str, Path | None]:
        """Name the stage that speaks from now on; `artifact_path` gets its numbers as well, to go with its artifact.

        Returns: what held before, to be given back afterwards.
        """
        before = (self.stage, self._artifact_path)
        self.stage, self._artifact_path = stage, artifact_path
        if self._sinks and self._under_way and artifact_path is not None:
            lines = without_repeats(read_lines(artifact_path))
            if lines:
                execution = self._under_way[-1]
                self._tell(lambda sink: sink.catch_up_stage(execution, lines))
        return before

    def stage_started(
        self, stage: str, kind: str, fingerprint: str, inputs: dict[str, Any], *, needs: Sequence[str] = ()
    ) -> None:
        """A result is about to be computed (not found in the store).

        Args: inputs: what its fingerprint is taken of. needs: `kind/fingerprint` of the artifacts that it reads.
        """
        execution = Execution(stage=stage, kind=kind, fingerprint=fingerprint, inputs=hide(inputs), needs=tuple(needs))
        self._under_way.append(execution)
        self._tell(lambda sink: sink.start_stage(execution))

    def stage_finished(self, stage: str, artifact_path: Path, manifest: dict[str, Any]) -> None:
        """The newest execution under way has published its artifact."""
        execution = self._ended(stage)
        if execution is not None:
            self._tell(lambda sink: sink.finish_stage(execution, artifact_path, manifest))

    def stage_failed(self, error: BaseException) -> None:
        """The newest execution under way has raised; those around it say so themselves."""
        if self._under_way:
            self._fail(self._under_way.pop(), ending_of(error))

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        row: dict[str, Any] = {"time": round(time.time(), 3), "stage": self.stage, "step": step, **metrics}
        for path in (self._path, self._artifact_path):
            if path is not None:
                write_line(path, row)
        if self._sinks:
            finite = {key: value for key, value in metrics.items() if value - value == 0}
            self._tell(lambda sink: sink.log(self.stage, finite, step))
        for observer in self.observers:
            observer(self.stage, metrics, step)

    def progress(self, done: int, total: int, note: str = "") -> None:
        if self._on_progress is not None:
            self._on_progress(done, total, note)

    def note(self, message: str) -> None:
        self._on_note(message)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            if self._on_warning is not None:
                self._on_warning(message)

    def finish(self, metrics: dict[str, Any], *, failed: bool | BaseException, run_dir: Path | None = None) -> None:
        """Close every service: final metrics in the summary, pictures and tables from the run folder's files.

        Args: metrics: the contents of result.json. failed: False, or what ended the run.
        """
        ending = ending_of(failed, metrics)
        while self._under_way:
            self._fail(self._under_way.pop(), ending_of(failed) if failed else Ending(state="failed"))
        notes: list[str] = []

        def close(sink: Sink) -> None:
            note = sink.finish(ending, run_dir or self._path.parent)
            if note:
                notes.append(note)

        self._tell(close)
        self._sinks = []
        for note in notes:
            self._on_note(note)

    def _ended(self, stage: str) -> Execution | None:
        """Take the newest execution of `stage` off the stack; what was begun within it has ended with it."""
        if not any(execution.stage == stage for execution in self._under_way):
            return None
        while self._under_way[-1].stage != stage:
            self._fail(self._under_way.pop(), Ending(state="failed"))
        return self._under_way.pop()

    def _fail(self, execution: Execution, ending: Ending) -> None:
        self._tell(lambda sink: sink.fail_stage(execution, ending))

    def _tell(self, call: Callable[[Sink], object]) -> None:
        """Call every service; the first fault of one is a warning and ends its part, never the run's."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.warn(
                    f"tracking: {sink.name} stopped ({hide(first_line(error))}); "
                    f"{self._path.name} in the run folder has every number"
                )
                sink.abandon()


def open_tracker(
    cfg: RunConfig,
    run_dir: Path,
    *,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    restarts: int = 0,
    cell: bool = True,
) -> RunTracker:
    """Open the tracker of a run and start the service that tracking.kind names.

    Args:
        on_note: gets the closing lines (how to sync an offline run); default: print.
        restarts: how often this run folder was started before without being done.
        cell: whether this is a run of its own; False for a job that only makes artifacts that cells share.
    Raises: ConfigError if the service's package is not installed. Any other fault of a service is a warning.
    """
    tracker = RunTracker(run_dir / "metrics.jsonl", on_progress=on_progress, on_warning=on_warning, on_note=on_note)
    kind = cfg.tracking.kind.name
    # of the processes that train together, the first speaks for all
    if kind == "none" or not processes.is_main():
        return tracker
    need_package(kind, folder=cfg.tracking.dir)
    try:
        if kind == "wandb":
            tracker.add(WandbSink(cfg, run_dir, warn=tracker.warn, restarts=restarts, cell=cell))
        elif kind == "tensorboard":
            tracker.add(TensorboardSink(cfg, run_dir))
        else:
            tracker.add(TrackioSink(cfg, run_dir, restarts=restarts))
    except Exception as error:
        tracker.warn(f"tracking: {kind} did not start ({hide(first_line(error))}); metrics.jsonl has every number")
    return tracker
