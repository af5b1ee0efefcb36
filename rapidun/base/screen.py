"""The console that all commands print to: what is printed is text, never markup."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# a notebook's line changes so often at most
LINE_SECONDS = 0.5


def screen(**options: Any) -> Console:
    """A console that takes `[red]`, `[/b]` and `:name:` in paths, names and rows for what they are.

    Args: options: of rich's Console.
    """
    from rich.console import Console  # --help does without

    if in_notebook():
        # plain lines in the cell's output: as HTML every line would be a block of its own
        options = {"force_jupyter": False, "force_terminal": False, "width": 120, **options}
    return Console(markup=False, emoji=False, highlight=False, **options)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which shows HTML and can change what it has shown."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class NotebookLine:
    """A line in a notebook's output that changes in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = -LINE_SECONDS

    def show(self, text: str, *, last: bool = False) -> None:
        """Let the line be this text; one that comes soon after another is left out, unless it is the last."""
        now = time.monotonic()
        if not last and now - self._shown < LINE_SECONDS:
            return
        self._shown = now
        # there is one: it is the kernel's
        from IPython.display import display

        data = {"text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
