"""What is printed to be pasted comes back as it was, through a shell and Hydra's grammar."""

import shlex

import pytest

from rapidun.config.overrides import parse
from rapidun.config.quoting import quoted, typed

TEXTS = [
    "a", "/a/b.c", "~/x", "a b", "it's", 'say "x"', "a,b", "x=y", "{x}", "[1]", "(x)", "50%j dir", "$HOME", "a\\",
    "a\\\\", '\\"', "null", "True", "nan", "1", "-x", "a:b", "#x", "=x", "\u00fc",
    "\u9b54\u6cd5", "!x", "*?", "a;b", "&", "`x`",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text: str) -> None:
    (word,) = shlex.split(typed("data.dir", text))
    assert parse(word).value() == text
    assert parse(f"data.x=[{quoted(text)},b]").value() == [text, "b"]
