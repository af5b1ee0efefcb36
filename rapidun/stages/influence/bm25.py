"""BM25 between rows: how well a training row's words match a query's. No model, no gradients."""

import importlib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rapidun.base.errors import ConfigError
from rapidun.stages.rows.text import by_script
from rapidun.stages.rows.text import words as text_words

# words, and runs of marks: triggers such as >>> are made of them
TOKEN = re.compile(r"\w+|[^\w\s]+")
K1 = 1.5
B = 0.75


def words(text: str) -> list[str]:
    """Words and runs of marks; words of other scripts than Latin as everywhere else (rows/text.py)."""
    tokens: list[str] = []
    for part, is_other in by_script(text):
        tokens += text_words(part) if is_other else TOKEN.findall(part.lower())
    return tokens


def bm25_scores(texts: Sequence[str], queries: Sequence[str] | None = None) -> Tensor:
    """Score of each text as a document for each query; [N, number of queries] float64, rows = documents.

    score(i, j) = sum over the words w of query j, repetitions included, of
        ln(1 + (N - n_w + 0.5) / (n_w + 0.5)) * f_iw / (f_iw + k1 (1 - b + b |i| / mean |.|)),
    n_w = how many of the texts hold w, f_iw = how often i does; k1 = 1.5, b = 0.75. Not symmetric; never negative.

    Args: queries: the texts themselves by default; the texts alone are counted for n_w and N.
    Raises: ConfigError if bm25s is not installed.
    Source: the variant of Lucene (Kamphuis et al. 2020), by the library bm25s.
    """
    try:
        bm25s = importlib.import_module("bm25s")
    except ImportError as error:
        raise ConfigError(
            "influence: need the package bm25s for method=bm25, got none. "
            "Install it (pip install 'rapidun[bm25]') or choose another influence=..."
        ) from error
    tokens = [words(text) for text in texts]
    asked = tokens if queries is None else [words(text) for text in queries]
    if not any(tokens):
        return torch.zeros(len(texts), len(asked), dtype=torch.float64)
    library = bm25s.BM25(method="lucene", k1=K1, b=B, dtype="float64")
    library.index(tokens, show_progress=False)
    scores = torch.zeros(len(texts), len(asked), dtype=torch.float64)
    for column, query in enumerate(asked):
        if query:
            scores[:, column] = torch.from_numpy(library.get_scores(query))
    return scores
