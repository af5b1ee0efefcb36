"""Small rules of text that several places share."""

import re


def first_line(error: BaseException) -> str:
    """`ValueError: what it says`, one line."""
    return f"{type(error).__name__}: {error}".split("\n")[0]


def short_message(error: BaseException) -> str:
    """What an error says, its first line of at most 200 letters, without the colours that some libraries put in."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:200]
