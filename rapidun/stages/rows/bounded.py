"""Chat templates are programs of strangers: bounds on their time and on the size of what they make.

transformers runs them in jinja2's immutable sandbox, which keeps them from Python's objects, not from going on for
ever. What one operation can blow up is refused before it is compiled (constants are worked out then); what takes many
steps is watched while it runs.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any

from rapidun.base.errors import ModelError

MOST_LETTERS = 500_000
# of this thread's processor time, for one conversation of two or three turns
MOST_SECONDS = 10.0
# of a text or a list, unless the conversation itself is longer
MOST_MADE = 1_000_000
MOST_FACTOR = 10_000
# they make a text as long as a number says
_PADDING = ("center", "ljust", "rjust", "zfill", "lipsum", "expandtabs")
_WIDE = re.compile(r"[0-9]{5}")


class TooMuch(Exception):
    """A template goes beyond a bound. Not a RapidunError: the caller says whose template it is."""


@lru_cache(maxsize=64)
def check_template(template: str) -> None:
    """Whether a template holds nothing that one operation blows up.

    Raises: TooMuch; jinja2's TemplateSyntaxError.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which transformers adds: what is inside counts."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    if len(template) > MOST_LETTERS:
        raise TooMuch(f"a text of {len(template):,} letters, more than {MOST_LETTERS:,}")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    tree = environment.parse(template)
    if next(tree.find_all(nodes.Pow), None) is not None:
        raise TooMuch("a power (**)")
    for product in tree.find_all(nodes.Mul):
        factors = [one.value for one in (product.left, product.right) if isinstance(one, nodes.Const)]
        small = any(type(value) in (int, float) and abs(value) <= MOST_FACTOR for value in factors)
        if not small or next(product.find_all(nodes.Mul), None) is not None:
            raise TooMuch(f"a product (*) that is none of one value and a number of at most {MOST_FACTOR:,}")
    for node in tree.find_all((nodes.Filter, nodes.Getattr, nodes.Name)):
        name = getattr(node, "attr", None) or getattr(node, "name", None)
        if name in _PADDING:
            raise TooMuch(f"{name}, which makes texts of any length")
    for text in tree.find_all(nodes.Const):
        if isinstance(text.value, str) and ("%" in text.value or "{" in text.value) and _WIDE.search(text.value):
            raise TooMuch(f"a format of any width ({text.value[:40]!r})")


@contextmanager
def bounded(*, letters: int) -> Iterator[None]:
    """Stop a template that runs inside after MOST_SECONDS, or once a value of it is larger than MOST_MADE.

    Args: letters: of the conversation; a template may print it a few times.
    Raises: TooMuch.
    """
    most = max(MOST_MADE, 20 * letters)
    end = time.thread_time() + MOST_SECONDS

    def on_line(frame: FrameType, event: str, given: Any) -> Callable[..., Any]:
        if time.thread_time() > end:
            raise TooMuch(f"more than {MOST_SECONDS:g} seconds of work")
        for value in frame.f_locals.values():
            if _size(value) > most:
                raise TooMuch(f"a value of more than {most:,} letters or items")
        return on_line

    def on_call(frame: FrameType, event: str, given: Any) -> Callable[..., Any] | None:
        # jinja2 compiles templates under this name
        return on_line if frame.f_code.co_filename == "<template>" else None

    held = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(held)


def _size(value: Any) -> int:
    if isinstance(value, str | list | tuple | dict):
        return len(value)
    inner = getattr(value, "_Namespace__attrs", None) if type(value).__name__ == "Namespace" else None
    return max(map(_size, inner.values()), default=0) if isinstance(inner, dict) else 0


def too_much(error: TooMuch, mend: str) -> ModelError:
    """What is said of a template that goes beyond a bound."""
    return ModelError(f"chat template: need one that ends at once and prints a conversation, got {error}. {mend}")
