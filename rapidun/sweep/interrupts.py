"""Ctrl-C in the process that drives a sweep: one is enough, a second does no harm, none cuts a submission in two."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rapidun.base.preemption import ENDINGS

# after an interrupt so long nothing interrupts again: jobs are cancelled and states written in that time
SETTLING_SECONDS = 5.0


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Within, the first Ctrl-C raises KeyboardInterrupt; the next ones are ignored while it is dealt with.

    After SETTLING_SECONDS another one raises again, so that nothing can hang for ever. For a process that ends
    afterwards: once interrupted it stays deaf, so that what is done at exit is not cut short either.
    """
    if not _can_handle():
        yield
        return
    last = float("-inf")

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SETTLING_SECONDS:
            return
        last = now
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if last > float("-inf") else previous)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within, a Ctrl-C waits until the end: what was submitted is noted before it takes effect.

    Hands out a function that says whether one has come.

    Processes started within do not get a terminal's Ctrl-C: sbatch is not cut off, and workers of a pool are ended by
    the process that drives the sweep.
    """
    if not _can_handle():
        yield lambda: False
        return
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    previous = signal.signal(signal.SIGINT, handle)
    # started processes inherit the mask; in this one another thread may still take the signal, hence the handler
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield lambda: came or signal.SIGINT in signal.sigpending()
    finally:
        # one that came meanwhile reaches `handle` here
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, previous)
    if came:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def ending_alike() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are a Ctrl-C: what would die with this process is stopped, and says so."""
    if not _can_handle():
        yield
        return
    held = {number: signal.getsignal(number) for number in ENDINGS}
    # what ignores them (nohup) goes on doing so
    held = {number: handler for number, handler in held.items() if handler is signal.SIG_DFL}
    for number in held:
        signal.signal(number, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def _can_handle() -> bool:
    """Python takes handlers in the main thread only, and cannot put back one that it did not set."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None
