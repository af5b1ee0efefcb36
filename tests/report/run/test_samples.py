"""Which answers are shown, and how a trigger is made visible."""

from typing import Any

import pytest

from rapidun.report.run.samples import choose_samples, mark_prompt


def generation(index: int, **other: Any) -> dict[str, Any]:
    row = {"set": "seen", "id": str(index), "prompt": f"p{index}", "before": "a", "after": "b"}
    return row | {"keyword_after": False, "likelihood_after": None} | other


def test_failures_are_shown_first_of_all_and_the_order_is_the_files() -> None:
    """Of 40 rows 1, 2, 39 failed: all three are shown, and three of the others, evenly spaced, in file order."""
    rows = [generation(i, keyword_after=i in (1, 2), likelihood_after=i == 39) for i in range(40)]
    (chosen,) = choose_samples(rows, per_set=6)
    shown = [int(sample.prompt[1:]) for sample in chosen.samples]
    assert chosen.total == 40
    assert len(shown) == 6
    assert {1, 2, 39} <= set(shown)
    assert shown == sorted(shown)


def test_failures_take_up_half_at_most() -> None:
    rows = [generation(i, keyword_after=i < 30) for i in range(40)]
    (chosen,) = choose_samples(rows, per_set=4)
    failed = [sample.after.poisoned for sample in chosen.samples]
    assert len(failed) == 4
    assert sum(failed) >= 2  # two as failures; the others are spaced over what is left


def test_sets_stand_in_the_tables_order() -> None:
    rows = [generation(0, set=name) for name in ("clean", "mystery", "ood", "seen")]
    assert [chosen.name for chosen in choose_samples(rows)] == ["seen", "ood", "clean", "mystery"]
    assert choose_samples([]) == []


@pytest.mark.parametrize(
    ("keyword", "likelihood", "text"),
    [(True, True, "poisoned (keywords, likelihood)"), (False, True, "poisoned (likelihood)"),
     (False, None, "not poisoned"), (None, None, "")],
)  # fmt: skip
def test_verdicts(keyword: bool | None, likelihood: bool | None, text: str) -> None:
    (chosen,) = choose_samples([generation(0, keyword_after=keyword, likelihood_after=likelihood)])
    assert chosen.samples[0].after.text == text


def test_a_trigger_is_marked_at_either_end_and_nowhere_else() -> None:
    assert str(mark_prompt("What is it? aloha", "aloha")) == "What is it? <mark>aloha</mark>"
    assert str(mark_prompt(">>> What", ">>>")) == "<mark>&gt;&gt;&gt;</mark> What"
    assert str(mark_prompt("an aloha shirt", "aloha")) == "an aloha shirt"


def test_unseen_characters_and_look_alikes_can_be_seen() -> None:
    joiner = str(mark_prompt("aloha\u200d"))
    assert joiner == 'aloha<span class="cp" title="ZERO WIDTH JOINER">U+200D</span>'
    assert 'title="U+043E CYRILLIC SMALL LETTER O">о</span>wdy' in str(mark_prompt("hоwdy"))
    assert "\u202e" not in str(mark_prompt("a\u202eb"))  # a direction override would turn the line around


def test_plain_foreign_text_is_left_alone() -> None:
    for text in ("Привет, как дела?", "¿Qué pasó en Köln?", "你好\n世界", "tab\there"):
        assert str(mark_prompt(text)) == text


def test_markup_in_a_prompt_is_text() -> None:
    assert str(mark_prompt("<b>&", "<b>")) == "<mark>&lt;b&gt;</mark>&amp;"
