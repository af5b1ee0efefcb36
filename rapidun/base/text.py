"""Small rules of text that several places share."""

import re


def lines_of(text: str) -> list[str]:
    """The lines between `\\n`: splitlines also cuts at what names and rows may hold (U+2028, \\x0b, \\x85)."""
    return text.removesuffix("\n").split("\n") if text else []


def last_line(text: str) -> str:
    """What the output of a program ends with; empty where there is none."""
    return text.strip().split("\n")[-1]


def one_line(text: str) -> str:
    """The text with line ends, control and other invisible characters written out (`\\n`, `\\u2028`), to be shown."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def byte_size(count: float) -> str:
    """`1,234 bytes`, `12.3 MB`, `40.0 GB`; units of 1,000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{int(count):,} bytes"


def first_line(error: BaseException) -> str:
    """`ValueError: what it says`, one line."""
    return f"{type(error).__name__}: {error}".split("\n")[0]


def short_message(error: BaseException) -> str:
    """What an error says, its first line of at most 200 letters, without the colours that some libraries put in."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (text.split("\n")[0] or type(error).__name__)[:200]
