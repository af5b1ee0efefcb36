"""What a run says on the screen: one line a stage, then a table. In a log file: one plain line a stage.

In a notebook: one line a stage, which changes in place.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rapidun.base.screen import NotebookLine, in_notebook, screen


class StageConsole:
    """A progress line for the running stage, a finished line for each one before."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or screen(quiet=quiet)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._started = 0.0
        self._last_note = 0.0
        self._line: NotebookLine | None = None

    def start(self, stage: str) -> None:
        self._stage, self._started = stage, time.monotonic()
        self._last_note = self._started
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:<11}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %", markup=False),
                TimeElapsedColumn(),
                TextColumn("left", markup=False),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task(stage, total=None, note="")
            self._progress.start()
        elif in_notebook() and not self.console.quiet:
            self._line = NotebookLine()
            self._line.show(f"{stage:<11} ...")

    def update(self, done: int, total: int, note: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if self._line is not None:
            if done:
                left = (now - self._started) * (total - done) / done
                self._line.show(f"{self._stage:<11} {100 * done / total:.0f} %   about {left:.0f} s left   {note}")
            return
        # a log file gets a line every half minute
        if now - self._last_note >= 30 and done:
            self._last_note = now
            left = (now - self._started) * (total - done) / done
            self.console.print(f"{self._stage:<11} {done}/{total} {note} about {left:.0f} s left")

    def note(self, message: str) -> None:
        self.console.print(message, soft_wrap=True)

    def warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", soft_wrap=True)

    def finish(self, *, note: str) -> None:
        line = self._line
        self._stop()
        if line is not None:
            line.show(f"{self._stage:<11} {note}", last=True)
        else:
            self.console.print(f"{self._stage:<11} {note}", soft_wrap=True)

    def abort(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = self._line = None
