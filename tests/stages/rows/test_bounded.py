"""Chat templates that would go on for ever, or fill the memory, end in a message; those of real models pass."""

import copy
from typing import Any

import pytest

from rapidun.base.errors import ModelError
from rapidun.stages.rows import bounded
from rapidun.stages.rows.bounded import TooMuch, check_template
from rapidun.stages.rows.template import _render

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}"
ENDLESS = {
    "loops": LOOP + "{% endfor %}{% endfor %}",
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "a call of itself": "{% macro m(n) %}{% for i in range(999) %}{{ m(n) }}{% endfor %}{% endmacro %}{{ m(1) }}",
    "a power": "{{ 9**9**9 }}",
    "a long text": "{{ 'x' * 10000000000 }}",
    "a longer text": "{{ 'x' * 9999 * 9999 * 9999 }}",
    "padding": "{{ 'x'|center(10000000000) }}",
    "padding by method": "{{ 'x'.ljust(10000000000) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "another format": "{{ '{:10000000000}'.format(1) }}",
    "doubling": "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "nested": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_they_end(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(bounded, "MOST_SECONDS", 0.5)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = ENDLESS[name]
    with pytest.raises(ModelError, match="chat template: need one that"):
        _render(tokenizer, "a", "b", in_parts=False)


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m['content'] }}{% generation %}{{ 'x' * 4 }}{% endgeneration %}{% endfor %}",
        "{% for m in messages %}{% if loop.index0 % 2 == 0 %}{% continue %}{% endif %}{{ m.content|trim }}{% endfor %}",
        "{{ '{\"name\": \"%s\"}' % 'x' }}{{ messages|tojson(indent=4) }}",
    ],
)  # fmt: skip
def test_usual_ones_pass(text: str) -> None:
    check_template(text)


def test_a_bound_is_of_one_rendering(tiny_tokenizer: Any) -> None:
    """The tracer that was there is there again, and long words are no fault of the template."""
    import sys

    held = sys.gettrace()
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    words = "long " * 500_000
    assert _render(tokenizer, words, "b", in_parts=False).startswith(words.strip())
    assert sys.gettrace() is held
    with pytest.raises(TooMuch):
        check_template("x" * 600_000)
