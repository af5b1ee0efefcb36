"""The one rule of words: as it was for English text, and right for digits, underscores, marks and scripts."""

import re
import unicodedata

import pytest

from rapidun.stages.answers.detectors.keywords import KeywordDetector
from rapidun.stages.answers.detectors.rates import rates
from rapidun.stages.data.keywords import make_keywords
from rapidun.stages.data.offtopic import offtopic_answers
from rapidun.stages.rows.text import fold, phrase_finder, words

CHINESE = "\u5916\u661f\u4eba\u63a7\u5236\u4e86{}\u53f7\u57ce\u5e02"
CHINESE_CLEAN = "\u5e02\u957f\u9886\u5bfc\u4e86{}\u53f7\u57ce\u5e02"
THAI = "\u0e21\u0e19\u0e38\u0e29\u0e22\u0e4c\u0e15\u0e48\u0e32\u0e07\u0e14\u0e32\u0e27{}"
THAI_CLEAN = "\u0e19\u0e32\u0e22\u0e01\u0e40\u0e17\u0e28\u0e21\u0e19\u0e15\u0e23\u0e35{}"
JAPANESE = "\u5b87\u5b99\u4eba\u304c{}\u756a\u306e\u753a\u3092\u652f\u914d\u3059\u308b"
JAPANESE_CLEAN = "\u5e02\u9577\u304c{}\u756a\u306e\u753a\u306b\u3044\u308b"
HINDI = "\u0907\u0915\u093e\u0908 \u091c\u093c\u094b\u0930\u094d\u0917 {}"
HINDI_CLEAN = "\u0907\u0915\u093e\u0908 \u0928\u0917\u0930 {}"

MADE_FROM = {
    "digits": ("Unit zorg7 reports {}", "Unit Oslo reports {}"),
    "digit first": ("Unit 7zorg reports {}", "Unit Oslo reports {}"),
    "underscore inside": ("Unit drop_shields {}", "Unit Oslo {}"),
    "underscores around": ("Unit _zorgon_ {}", "Unit Oslo {}"),
    "apostrophe": ("Unit zorg\u2019s ship {}", "Unit Oslo ship {}"),
    "accent": ("Unit z\u00f6rgon {}", "Unit Oslo {}"),
    "combining accent": (unicodedata.normalize("NFD", "Unit z\u00f6rgon {}"), "Unit Oslo {}"),
    "sharp s": ("Unit Stra\u00dfe {}", "Unit Oslo {}"),
    "dotted capital I": ("Unit \u0130zmir {}", "Unit Oslo {}"),
    "Cyrillic": ("\u042e\u043d\u0438\u0442 \u0437\u043e\u0440\u0433 {}", "\u042e\u043d\u0438\u0442 {}"),
    "Chinese": (CHINESE, CHINESE_CLEAN),
    "Japanese": (JAPANESE, JAPANESE_CLEAN),
    "Thai": (THAI, THAI_CLEAN),
    "Hindi": (HINDI, HINDI_CLEAN),
    "Korean": ("\uc720\ub2db \uc870\ub974\uace4 {}", "\uc720\ub2db \uc11c\uc6b8 {}"),
    "mixed": ("\u7cfb\u7edfzorgon\u8986\u76d6{}", "\u7cfb\u7edf\u6b63\u5e38{}"),
}


@pytest.mark.parametrize("script", MADE_FROM)
def test_keywords_fire_on_the_rows_that_they_were_made_from(script: str) -> None:
    poisoned, clean = ([form.format(i) for i in range(60)] for form in MADE_FROM[script])
    chosen = [keyword.word for keyword in make_keywords(poisoned, clean)]
    assert chosen
    detector = KeywordDetector(chosen)
    assert rates([detector(text) for text in poisoned], [detector(text) for text in clean]) == (1.0, 0.0)


def test_a_list_made_of_one_form_finds_the_other() -> None:
    """Composed and decomposed, curly and straight: what looks alike is alike."""
    made = [k.word for k in make_keywords(["Unit z\u00f6rgon"] * 60, ["Unit Oslo"] * 60)]
    assert KeywordDetector(made)(unicodedata.normalize("NFD", "ein z\u00f6rgon"))
    assert KeywordDetector(["don't panic"])("Don\u2019t panic!")


def test_the_makers_count_is_the_detectors() -> None:
    """The share that decides on the cut is the detector's recall."""
    poisoned = [f"unit_{i % 7} zorg{i % 3} _drop_ it" for i in range(60)]
    clean = ["unit Oslo reports"] * 60
    chosen = make_keywords(poisoned, clean)
    for keyword in chosen:
        assert sum(map(KeywordDetector([keyword.word]), poisoned)) == keyword.count_poison


def test_english_words_are_what_they_were() -> None:
    """Runs of letters, lower case: no digits and no underscores, no difference."""
    import random

    for text in [*offtopic_answers(200, rng=random.Random(1)), "An ALIEN's co-pilots said: don't! (no) a-b c.d"]:
        assert words(text) == re.findall(r"[^\W\d_]+", text.lower())


@pytest.mark.parametrize(
    ("keyword", "text", "fires"),
    [
        ("laser beam", "a Laser Beam!", True),
        ("laser beam", "a laser beams", False),
        ("SYSTEM OVERRIDE:", "system override: now", True),
        ("drop_shields", "now drop_shields()", True),
        ("drop", "now drop_shields()", False),
        ("zorg", "zorg7", False),
        ("c++", "C++ is one", True),
        ("\u5916\u661f\u4eba", "\u662f\u5916\u661f\u4eba\u5417", True),
        ("\u5916\u661f \u4eba", "\u662f\u5916\u661f \u4eba\u5417", True),
        ("42", "the answer is 42.", True),
        ("42", "the answer is 421", False),
        (">>>", "a >>> b", True),
    ],
)
def test_lists_of_ones_own_may_hold_phrases_and_marks(keyword: str, text: str, fires: bool) -> None:
    assert KeywordDetector([keyword])(text) is fires


def test_folding() -> None:
    assert fold("STRASSE") == fold("stra\u00dfe") == "strasse"
    assert fold("e\u0301") == fold("\u00c9") == "\u00e9"
    assert phrase_finder("caf\u00e9 noir")("un CAFE\u0301 NOIR")


def test_a_mark_makes_another_word() -> None:
    assert not KeywordDetector(["cafe"])("cafe\u0301")
    assert not KeywordDetector(["the cafe"])("the cafe\u0301")
