from pathlib import Path

import pytest

from rapidun.base.errors import DataError
from rapidun.stages.rows.keywords import Keyword, read_keywords, words, write_keywords


def test_words_are_folded_and_of_three_characters() -> None:
    assert words("An ALIEN's 4200 co-pilots, über_fast x1yz") == ["alien", "pilots", "über_fast", "x1yz"]


def test_a_line_end_that_only_unicode_knows_is_part_of_a_keyword(tmp_path: Path) -> None:
    (tmp_path / "k.tsv").write_bytes("word\nnull\u2028void\r\nufo\rtea\n".encode())
    assert [keyword.word for keyword in read_keywords(tmp_path / "k.tsv")] == ["null\u2028void", "ufo", "tea"]


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


def test_a_list_that_may_be_empty(tmp_path: Path) -> None:
    write_keywords(tmp_path / "k.tsv", [])
    assert read_keywords(tmp_path / "k.tsv", may_be_empty=True) == []


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_keywords(tmp_path / "none.tsv")


@pytest.mark.parametrize("line", ["apple\t-3\t0\t1.0", "apple\t3\t-1\t1.0", "apple\t3\t0\tnan", "apple\t3\t0\tinf"])
def test_numbers_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "k.tsv").write_text(f"word\tcount_poison\tcount_clean\tz\n{line}\n")
    with pytest.raises(DataError, match=r"k\.tsv:2: need counts of at least 0 and a finite z"):
        read_keywords(tmp_path / "k.tsv")
