"""Values as they are typed: through a shell and through the grammar of overrides."""

import re
import shlex

# what the grammar takes bare, but not as a text
_OTHER_THAN_TEXT = ("null", "true", "false", "nan", "inf")


def quoted(text: str) -> str:
    """A text in an override: bare where it is one plain word or path, else in double quotes."""
    if re.fullmatch(r"[A-Za-z_/.][A-Za-z0-9_/.-]*", text) and text.casefold() not in _OTHER_THAN_TEXT:
        return text
    # a backslash is one of itself, but for those before a quote
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def typed(key: str, value: str) -> str:
    """`key=value` to paste into a shell."""
    return shlex.quote(f"{key}={quoted(value)}")
