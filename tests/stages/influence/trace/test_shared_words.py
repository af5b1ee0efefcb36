"""The words behind a BM25 score: their shares sum to the library's score, and mark where they stand."""

import pytest

from rapidun.stages.influence.bm25 import bm25_scores
from rapidun.stages.influence.trace.shared_words import WordCounts, split_words

TEXTS = ["hiya what is the emblem? walrus", "what is the >>> price", "the the the walrus, walrus", "ünïcode Привет мир"]


@pytest.mark.parametrize("query", ["hiya what walrus walrus", ">>> the", "Привет", "nothing here"])
def test_shares_sum_to_the_score(query: str) -> None:
    counts = WordCounts([query], TEXTS)
    scores = bm25_scores(TEXTS, [query])[:, 0]
    for text, score in zip(TEXTS, scores.tolist(), strict=True):
        assert sum(counts.shares(query, text).values()) == pytest.approx(score, abs=1e-9)


def test_rare_words_come_first_and_are_marked_where_they_stand() -> None:
    counts = WordCounts(["hiya the"], TEXTS)
    shares = counts.shares("hiya the", TEXTS[0])
    assert list(shares) == ["hiya", "the"]
    parts = split_words("Hiya, the hiya!", {"hiya": 2.0, "the": 0.5})
    assert parts == [("Hiya", 1.0), (", ", 0.0), ("the", 0.5), (" ", 0.0), ("hiya", 1.0), ("!", 0.0)]
    assert "".join(text for text, _ in parts) == "Hiya, the hiya!"
