"""Lines about work that takes longer than a reader waits without a word: how far it is, and how long it will take.

Plain lines, in a log file as on a terminal; nothing is said of what is done in five seconds.
"""

import sys
import time
from collections.abc import Callable

FIRST_SECONDS, EVERY_SECONDS = 5.0, 30.0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Slow:
    """Told how much is done, says it now and then. The estimate takes what is left to go at the mean pace so far."""

    def __init__(
        self,
        what: str,
        *,
        unit: str = "",
        tell: Callable[[str], None] = _to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: unit: what is counted, `rows`; empty = shares of a whole are told, in percent."""
        self._what, self._unit, self._tell, self._clock = what, unit, tell, clock
        self._began = clock()
        self._next = self._began + FIRST_SECONDS

    def __call__(self, done: float, total: float) -> None:
        now = self._clock()
        if now < self._next or done >= total:
            return
        self._next = now + EVERY_SECONDS
        left = round((total - done) * (now - self._began) / done) if done > 0 else None
        far = f"{done:g} of {total:g} {self._unit}" if self._unit else f"{100 * done / total:.0f} %"
        self._tell(f"{self._what}: {far}" + ("" if left is None else f", about {left} s left"))
