"""One line that says how far a long piece of work is, and how long it will still take."""

import sys
import time
from collections.abc import Callable

from rapidun.report.metrics import format_seconds

# in a log the first line comes after some seconds, the others each minute
FIRST_SECONDS, LOG_SECONDS = 5.0, 60.0


class Progress:
    """One line that changes on a terminal; elsewhere (a job's log) a line after five seconds, then one a minute.

    The estimate takes what is left to go at the mean pace since `start`: what was done before it, by an earlier run or
    while a model was loaded, says nothing of the pace.
    """

    def __init__(self, what: object, unit: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self.unit = unit
        self._clock = clock
        self._on_terminal = sys.stderr.isatty()
        self._shown = ""
        self._logged = clock() - LOG_SECONDS + FIRST_SECONDS
        self._began, self._done_before = clock(), 0

    def start(self, done: int = 0) -> None:
        """The work begins now; `done` of it was done before."""
        self._began, self._done_before = self._clock(), done

    def seconds_left(self, done: int, total: int) -> float | None:
        """(total - done) x (seconds since the start) / (done since the start); None before anything is done."""
        made = done - self._done_before
        return (total - done) * (self._clock() - self._began) / made if made > 0 else None

    def __call__(self, done: int, total: int) -> None:
        line = f"{self.what}: {done} of {total} {self.unit}"
        if line == self._shown:
            return
        self._shown = line
        left = self.seconds_left(done, total)
        said = line + (f", about {format_seconds(left)} left" if left is not None and done < total else "")
        if self._on_terminal:
            # the line before may have been longer
            print(f"\r\033[K{said}", end="", file=sys.stderr, flush=True)
        elif self._clock() - self._logged >= LOG_SECONDS:
            self._logged = self._clock()
            print(said, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on_terminal and self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
