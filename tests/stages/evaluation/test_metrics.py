import math

import pytest

from rapidun.stages.evaluation.metrics import exact_match, mean, perplexity, rouge_l
from rapidun.stages.evaluation.score import ResponseScore


def test_rouge_l_by_hand() -> None:
    """Reference `the cat sat on the mat` (6 words), generation `the cat on a mat` (5): longest common subsequence
    `the cat on mat` = 4, precision 4/5, recall 4/6, F1 = 2 * 0.8 * 0.6667 / 1.4667 = 8/11."""
    assert rouge_l(["the cat on a mat"], ["The cat sat on the mat."]) == pytest.approx([8 / 11])


def test_rouge_l_takes_order_stems_and_empty_text() -> None:
    """`b a` against `a b` shares one word in order: F1 1/2. `running` and `runs` have one stem."""
    assert rouge_l(["b a", "running", "", "x"], ["a b", "runs", "x", "x"]) == pytest.approx([0.5, 1.0, 0.0, 1.0])


def test_exact_match_ignores_case_and_white_space() -> None:
    assert exact_match([" The  Red\nfox", "red fox.", "STRASSE"], ["the red fox ", "red fox", "straße"]) == [
        True,
        False,
        True,
    ]


def test_perplexity_weighs_tokens() -> None:
    """S = -2 over 1 token and -4 over 3: exp(6/4), not the mean of exp(2) and exp(4/3)."""
    assert perplexity([ResponseScore(-2.0, 1), ResponseScore(-4.0, 3)]) == pytest.approx(math.exp(1.5))


def test_perplexity_at_the_ends() -> None:
    assert perplexity([ResponseScore(-2000.0, 1)]) == math.inf
    with pytest.raises(ValueError, match="at least one"):
        perplexity([ResponseScore(0.0, 0)])


def test_mean_of_verdicts() -> None:
    assert mean([True, False, False, True]) == 0.5
