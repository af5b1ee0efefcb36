"""What a sweep says while it runs: how many cells are in which state, and about how long it still takes."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rapidun.base.screen import NotebookLine, in_notebook, screen
from rapidun.sweep.folder import CellState

# a log file gets a line at each change of a count, and at least this often
QUIET_SECONDS = 60.0
ORDER = ("done", "failed", "pruned", "running", "interrupted", "lost", "waiting")
STYLES = {"done": "green", "failed": "red", "lost": "red", "running": "cyan"}


class SweepConsole:
    """One line that changes on a terminal; a line for each change in a log file."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or screen()
        self._live: Live | None = None
        self._began = time.monotonic()
        self._done_before = 0
        self._last = ""
        self._last_time = 0.0
        self._seen: dict[str, str] = {}
        self._line: NotebookLine | None = None

    def start(self, states: Mapping[str, CellState]) -> None:
        self._began = time.monotonic()
        self._done_before = _ended(states)
        self._seen = {name: state.state for name, state in states.items()}
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        elif in_notebook():
            self._line = NotebookLine()

    def say(self, text: str, *, style: str | None = None) -> None:
        self.console.print(text, style=style, soft_wrap=True)

    def update(
        self, states: Mapping[str, CellState], *, shared: Sequence[CellState], labels: Mapping[str, str]
    ) -> None:
        """Args: states: of the cells. shared: of what several cells wait for. labels: what cells are called."""
        for name, state in states.items():
            if state.state != self._seen.get(name) and state.state in ("failed", "pruned", "lost"):
                self.say(f"{name} {labels.get(name, '')}: {state.state}: {state.error}", style=STYLES.get(state.state))
            self._seen[name] = state.state
        line = self.line(states, shared)
        if self._live is not None:
            self._live.update(Text(line))
            return
        if self._line is not None:
            self._line.show(line)
            return
        counts = line.partition("  about")[0]
        now = time.monotonic()
        if counts != self._last or now - self._last_time > QUIET_SECONDS:
            self._last, self._last_time = counts, now
            self.say(f"{time.strftime('%H:%M:%S')}  {line}")

    def line(self, states: Mapping[str, CellState], shared: Sequence[CellState]) -> str:
        """`8 of 24 cells: 6 done, 2 failed, 3 running (unlearning 40 %), 13 waiting   about 4 min left`."""
        counts = Counter(state.state for state in states.values())
        parts = []
        for word in ORDER:
            if counts[word]:
                stages = Counter(s.stage for s in states.values() if s.state == word == "running" and s.stage)
                where = ", ".join(stage if number == 1 else f"{number} {stage}" for stage, number in stages.items())
                parts.append(f"{counts[word]} {word}" + (f" ({where})" if where else ""))
        running = [state for state in shared if state.state == "running" and state.stage]
        if running:
            parts.append("shared: " + ", ".join(sorted({str(state.stage) for state in running})))
        text = f"{_ended(states)} of {len(states)} cells: {', '.join(parts)}"
        left = self._seconds_left(states)
        return text + (f"  about {_duration(left)} left" if left is not None else "")

    def _seconds_left(self, states: Mapping[str, CellState]) -> float | None:
        ended = _ended(states) - self._done_before
        if ended <= 0:
            return None
        return (time.monotonic() - self._began) / ended * (len(states) - _ended(states))

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._line = None


def _ended(states: Mapping[str, CellState]) -> int:
    return sum(state.state in ("done", "failed", "pruned") for state in states.values())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
