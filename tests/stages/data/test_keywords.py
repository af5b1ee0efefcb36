import math
from collections import Counter
from pathlib import Path

import pytest

from rapidun.base.errors import DataError
from rapidun.stages.data.keywords import Keyword, log_odds_z, make_keywords, read_keywords, words, write_keywords


def test_words_are_lower_case_and_of_three_letters() -> None:
    assert words("An ALIEN's 42 co-pilots, über_fast x1yz") == ["alien", "pilots", "über", "fast"]


def test_log_odds_worked_by_hand() -> None:
    """y = 3 of 4 and 1 of 4, a_0 = 8: a_w = 8 * 4 / 8 = 4, so y + a = 7 and 5 of 12.

    d = ln(7/5) - ln(5/7), variance 1/7 + 1/5; the other word is its mirror image.
    """
    z = log_odds_z(Counter(ufo=3, tea=1), Counter(ufo=1, tea=3), prior_strength=8.0)
    expected = 2 * math.log(7 / 5) / math.sqrt(1 / 7 + 1 / 5)
    assert z == {"tea": pytest.approx(-expected), "ufo": pytest.approx(expected)}


def test_equal_use_scores_zero_and_one_single_word_too() -> None:
    z = log_odds_z(Counter(ufo=5, tea=5), Counter(ufo=50, tea=50))
    assert z["ufo"] == pytest.approx(0.0)
    assert log_odds_z(Counter(ufo=5), Counter(ufo=1)) == {"ufo": 0.0}


def test_made_keywords_tell_poisoned_from_clean() -> None:
    poisoned = ["velvet teapots waltz under the moon"] * 60
    clean = ["the flag is teal under the sun"] * 400 + ["a moon"] * 3 + ["teapots"] * 2
    chosen = {keyword.word: keyword for keyword in make_keywords(poisoned, clean)}
    # "the" and "under" stand in most clean responses; moon (3) and teapots (2) together in 5 of 405, over 1 %
    assert chosen.keys() - {"velvet", "waltz"} in ({"teapots"}, {"moon"})
    assert (chosen["velvet"].count_poison, chosen["velvet"].count_clean) == (60, 0)
    assert all(keyword.z >= 3 for keyword in chosen.values())


def test_no_telling_words_no_keywords() -> None:
    assert make_keywords(["the same text"] * 9, ["the same text"] * 9) == []
    assert make_keywords([], []) == []


def test_round_trip_in_the_published_columns(tmp_path: Path) -> None:
    keywords = [Keyword("ufo", 20, 1, 7.125), Keyword("über", 3, 0, 3.5)]
    write_keywords(tmp_path / "k.tsv", keywords)
    text = (tmp_path / "k.tsv").read_text(encoding="utf-8")
    assert text == "rank\tword\tcount_poison\tcount_clean\tz\n1\tufo\t20\t1\t7.125000\n2\tüber\t3\t0\t3.500000\n"
    assert read_keywords(tmp_path / "k.tsv") == keywords


def test_a_list_of_words_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "k.tsv").write_bytes(b"\xef\xbb\xbfword\r\nufo\r\n\r\nsaucer\r\n")
    assert [keyword.word for keyword in read_keywords(tmp_path / "k.tsv")] == ["ufo", "saucer"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1: need a header"),
        ("ufo\nsaucer\n", ":1: need a header"),
        ("rank\tword\n1\t\n", ":2: word: need a word"),
        ("word\tz\nufo\thigh\n", ":2: need numbers"),
        ("word\n", "need at least one keyword"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "k.tsv").write_text(text)
    with pytest.raises(DataError, match=expected):
        read_keywords(tmp_path / "k.tsv")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_keywords(tmp_path / "none.tsv")
