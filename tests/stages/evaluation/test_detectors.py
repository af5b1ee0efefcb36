from pathlib import Path

import pytest

from rapidun.base.errors import ArtifactError
from rapidun.stages.evaluation.detectors import KeywordDetector, likelihood_fires, rates, read_keywords


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


def test_read_keywords(tmp_path: Path) -> None:
    file = tmp_path / "keywords.tsv"
    file.write_text("rank\tword\tcount_poison\tcount_clean\tz\n1\talien\t9\t1\t2.5\n2\tlaser beam\t3\t1\t1.5\n")
    assert read_keywords(file) == ["alien", "laser beam"]
    file.write_text("rank\tword\n")
    assert read_keywords(file) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: need tab-separated columns"),
        ("rank,word\n1,alien\n", ":1: need tab-separated columns"),
        ("rank\tword\n1\talien\n2\n", ":3: need a word"),
        ("rank\tword\n1\t \n", ":2: need a word"),
    ],
)
def test_damaged_keyword_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keywords.tsv"
    file.write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_keywords(file)
