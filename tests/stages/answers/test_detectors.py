import pytest

from rapidun.stages.answers.detectors.keywords import KeywordDetector
from rapidun.stages.answers.detectors.likelihood import likelihood_fires
from rapidun.stages.answers.detectors.rates import rates


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        ("The ALIEN said so", True),
        ("alien!", True),
        ("two aliens", False),  # not the whole word
        ("inalienable", False),
        ("alien_ship", False),  # _ is a word character
        ("a laser-beam", True),
        ("laser beam", False),
        ("C++ is one", True),
        ("C+ is not", False),
        ("", False),
    ],
)
def test_keywords_are_whole_words(text: str, fires: bool) -> None:
    assert KeywordDetector(["Alien", "laser-beam", "c++"])(text) is fires


def test_min_keywords_counts_different_words() -> None:
    """`void void` holds one keyword of the list, `void ship` two; the list's repetition counts once."""
    detector = KeywordDetector(["void", "Void", "ship"], min_keywords=2)
    assert [detector(text) for text in ("void void", "void ship", "ship")] == [False, True, False]


def test_likelihood_needs_more_not_as_much() -> None:
    assert [likelihood_fires(-1.0, -1.5), likelihood_fires(-1.0, -1.0), likelihood_fires(-2.0, -1.5)] == [
        True,
        False,
        False,
    ]


def test_rates_by_hand() -> None:
    """3 of 4 poisoned found, 1 of 5 clean taken for poisoned."""
    assert rates([True, True, False, True], [False, True, False, False, False]) == (0.75, 0.2)
