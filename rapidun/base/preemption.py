"""Stopping early on request: a signal asks, training saves a checkpoint at the end of its step, and goes on later.

Both exceptions here pass through `except Exception`, so that no handler of faults takes them for one.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Preempted(BaseException):
    """The run was asked to make room; started again, it goes on from its newest checkpoint."""

    def __init__(self, reason: str = "asked to stop") -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def status(self) -> int:
        """The exit status of a process that this ends, as shells have it: 128 and the signal's number."""
        name = self.reason.removeprefix("signal ")
        return 128 + (signal.Signals[name] if name in signal.Signals.__members__ else signal.SIGTERM)


class Pruned(BaseException):
    """Whoever watches a run's numbers gave it up: `value` at `step` promises too little."""

    def __init__(self, value: float, step: int) -> None:
        super().__init__(value, step)
        self.value = value
        self.step = step

    def __str__(self) -> str:
        return f"{self.value:g} at step {self.step}"


# what init, a container's host, a closed terminal send to end a process
ENDINGS = (signal.SIGTERM, signal.SIGHUP)

_reason: str | None = None
_num_open = 0
# told the reason when a signal asks, before anything is saved
_listener: Callable[[str], object] | None = None
# the process that installed handlers: those that it forks die of a signal as ever
_installed_by = 0


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


@contextmanager
def telling(listener: Callable[[str], object]) -> Iterator[None]:
    """Within, `listener` hears of a signal at once, in its handler: what follows may take longer than given."""
    global _listener
    held, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = held


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
    global _installed_by
    _installed_by = os.getpid()
    previous = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        signal.signal(number, _on_signal)
    return Installed(previous)


@contextmanager
def ending_well() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP ask for a stop, as SIGUSR2 does in a job; what ignores them (nohup) goes on doing so.

    Outside the main thread, where Python takes no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with install([number for number in ENDINGS if signal.getsignal(number) is signal.SIG_DFL]):
        try:
            yield
        finally:
            clear()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _installed_by:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if _reason is not None:
        return
    reason = f"signal {signal.Signals(number).name}"
    request_stop(reason)
    if _listener is not None:
        _listener(reason)
    if _num_open == 0:
        raise_if_requested()
