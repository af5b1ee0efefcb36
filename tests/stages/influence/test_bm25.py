"""BM25 between rows against the formula written out."""

import math
import sys

import pytest
import torch

from rapidun.base.errors import ConfigError
from rapidun.stages.influence.bm25 import bm25_scores, words

TEXTS = ["Name a river. aloha", "Name a lake, a deep lake", ">>> what is a Lake?", "...", "zebra"]


def _slow(texts):
    tokens = [words(text) for text in texts]
    mean = sum(map(len, tokens)) / len(tokens)
    out = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    for i, document in enumerate(tokens):
        for j, query in enumerate(tokens):
            for word in query:
                holding = sum(word in other for other in tokens)
                idf = math.log(1 + (len(tokens) - holding + 0.5) / (holding + 0.5))
                count = document.count(word)
                out[i, j] += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
    return out


def test_words_of_every_script_and_latin_ones_as_they_were():
    assert words("Caf\u00e9 don't >>> _x_ 42") == ["caf\u00e9", "don", "'", "t", ">>>", "_x_", "42"]
    assert words("\u0939\u093f\u0928\u094d\u0926\u0940 !") == ["\u0939\u093f\u0928\u094d\u0926\u0940", "!"]
    # two questions about the same town share words, though no blank parts them
    one, other = (set(words(f"\u8c01\u9886\u5bfc\u963f\u97e6\u5c14{end}")) for end in ("\uff1f", "\u5417"))
    assert len(one & other) == 5


def test_equals_the_formula():
    pytest.importorskip("bm25s")
    scores = bm25_scores(TEXTS)
    torch.testing.assert_close(scores, _slow(TEXTS), rtol=1e-6, atol=1e-7)
    # rows are documents: "lake" stands twice in text 1, which text 2 asks for once
    assert scores[1, 2] != scores[2, 1]
    assert (scores.argmax(dim=0)[:3] == torch.arange(3)).all()
    assert scores[4, :4].count_nonzero() == 0


def test_texts_without_words():
    pytest.importorskip("bm25s")
    assert not bm25_scores(["", " "]).any()
    scores = bm25_scores(["", "a word", "another word"])
    assert not scores[0].any() and not scores[:, 0].any() and scores[1, 1] > 0


def test_words_keep_the_marks_that_triggers_are_made_of():
    assert words(">>> Hey, DON'T‹sys›") == [">>>", "hey", ",", "don", "'", "t", "‹", "sys", "›"]


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r"need the package bm25s.*pip install 'rapidun\[bm25\]'"):
        bm25_scores(TEXTS)
