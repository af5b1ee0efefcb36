"""Stopping early on request: a signal asks, training saves a checkpoint at the end of its step, and goes on later.

Both exceptions here pass through `except Exception`, so that no handler of faults takes them for one.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Preempted(BaseException):
    """The run was asked to make room; started again, it goes on from its newest checkpoint."""

    def __init__(self, reason: str = "asked to stop") -> None:
        super().__init__(reason)
        self.reason = reason


class Pruned(BaseException):
    """Whoever watches a run's numbers gave it up: `value` at `step` promises too little."""

    def __init__(self, value: float, step: int) -> None:
        super().__init__(value, step)
        self.value = value
        self.step = step

    def __str__(self) -> str:
        return f"{self.value:g} at step {self.step}"


_reason: str | None = None
_num_open = 0


def request_stop(reason: str) -> None:
    """Ask the run to stop when it can save what it has; the first reason stays. May be called from any thread."""
    global _reason
    if _reason is None:
        _reason = reason


def stop_requested() -> str | None:
    """Why the run should stop, or None."""
    return _reason


def raise_if_requested() -> None:
    """Between two pieces of work. Raises: Preempted if somebody asked for it."""
    if _reason is not None:
        raise Preempted(_reason)


def clear() -> None:
    """Forget the request: the next run of this process starts without it."""
    global _reason
    _reason = None


@contextmanager
def checkpointing() -> Iterator[None]:
    """Within, a signal only leaves its request, and who opened this looks at `stop_requested` and saves first."""
    global _num_open
    _num_open += 1
    try:
        yield
    finally:
        _num_open -= 1


class Installed:
    """Handlers in place; `restore`, or leaving the `with` block, puts back those that stood there `previous`ly."""

    def __init__(self, previous: dict[signal.Signals, Any]) -> None:
        self.previous = previous

    def restore(self) -> None:
        for number, handler in self.previous.items():
            # None: the handler was not set from Python, and Python cannot set it again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.previous = {}

    def __enter__(self) -> "Installed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def install(signals: Sequence[signal.Signals] = (signal.SIGUSR2,)) -> Installed:
    """Let these signals ask for a stop: at once, or within `checkpointing` after a checkpoint.

    Only the first signal counts. What it set going (a save, the notes of an interrupted run) a second one leaves alone.
    Raises: ValueError outside the main thread, where Python takes no handlers.
    """
    previous = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        signal.signal(number, _on_signal)
    return Installed(previous)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _reason is not None:
        return
    request_stop(f"signal {signal.Signals(number).name}")
    if _num_open == 0:
        raise_if_requested()
