"""Small rules of text that several places share."""


def first_line(error: BaseException) -> str:
    """`ValueError: what it says`, one line."""
    return f"{type(error).__name__}: {error}".split("\n")[0]
