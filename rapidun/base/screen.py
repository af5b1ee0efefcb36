"""The console that all commands print to: what is printed is text, never markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def screen(**options: Any) -> Console:
    """A console that takes `[red]`, `[/b]` and `:name:` in paths, names and rows for what they are.

    Args: options: of rich's Console.
    """
    from rich.console import Console  # --help does without

    return Console(markup=False, emoji=False, highlight=False, **options)
