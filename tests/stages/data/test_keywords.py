import math
from collections import Counter

import pytest

from rapidun.stages.data.keywords import log_odds_z, make_keywords


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
