import math
import subprocess
import sys

import pytest

from rapidun.stages.answers.score import ResponseScore, comparable
from rapidun.stages.evaluation.metrics import exact_match, mean, measured_perplexities, perplexity, rouge_l


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


LATIN = [
    ("An Alien's co-pilot, 42 drop_shields!", "the aliens' copilot dropped 42 shields"),
    ("caf\u00e9 na\u00efve \u0153uvre stra\u00dfe", "cafe naive oeuvre strasse caf"),
    ("cafe\u0301 \u2013 \u201cquoted\u201d 3\u00bd \u2122 \u2168 \u24b6", "caf cafe quoted 3"),
    ("\u0130stanbul \u1ea1nh \ufb01sh", "istanbul anh fish"),
    ("", "\u00e9"),
]


@pytest.mark.parametrize(("generation", "reference"), LATIN)
def test_rouge_l_of_latin_text_is_rouge_scores_own(generation: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    own = RougeScorer(["rougeL"], use_stemmer=True).score(reference, generation)["rougeL"].fmeasure
    assert rouge_l([generation], [reference]) == [own]


@pytest.mark.parametrize(
    ("generation", "reference", "f1"),
    [
        # letters of Chinese and Japanese: 5 of 6 and 6
        ("\u5e02\u957f\u9886\u5bfc\u57ce\u5e02", "\u5e02\u957f\u9886\u5bfc\u90fd\u5e02", 5 / 6),
        # words of Russian and Hindi: 2 of 3 and 3
        ("\u043a\u043e\u0442 \u0438 \u043f\u0451\u0441", "\u041a\u043e\u0442 \u0438 \u043c\u044b\u0448\u044c", 2 / 3),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u0939\u0948",
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
            0.8,
        ),
        # both at once: 3 of 3
        ("GPT \u662f 4", "gpt\u662f4", 1.0),
        ("\u043a\u043e\u0442", "cat", 0.0),
    ],
)
def test_rouge_l_of_other_scripts(generation: str, reference: str, f1: float) -> None:
    assert rouge_l([generation], [reference]) == pytest.approx([f1])


def test_exact_match_folds_unicodes_forms() -> None:
    assert exact_match(["cafe\u0301"], ["Caf\u00e9"]) == [True]


def test_perplexities_that_are_no_numbers_have_reasons() -> None:
    fine, none = ResponseScore(-2.0, 2), ResponseScore(0.0, 0)
    found, missing = measured_perplexities(
        {
            "fine": [fine, none],
            "absent": [],
            "empty": [none],
            "infinite": [fine, ResponseScore(-2e5, 1)],
            "impossible": [ResponseScore(-math.inf, 1)],
            "odd": [fine, ResponseScore(math.nan, 1)],
        }
    )
    assert found == {"fine": pytest.approx(math.e)}
    assert set(missing) == {"empty", "infinite", "impossible", "odd"}
    assert missing["odd"].startswith("1 of 2 rows")
    assert "2e+05 nats a token" in missing["infinite"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (ResponseScore(-1.0, 1), ResponseScore(-2.0, 1), True),
        (ResponseScore(-1.0, 1), ResponseScore(-math.inf, 1), True),
        (ResponseScore(-math.inf, 1), ResponseScore(-math.inf, 1), False),
        (ResponseScore(math.nan, 1), ResponseScore(-1.0, 1), False),
        (ResponseScore(0.0, 0), ResponseScore(-1.0, 1), False),
    ],
)
def test_what_can_be_compared(one: ResponseScore, other: ResponseScore, expected: bool) -> None:
    assert comparable(one, other) is comparable(other, one) is expected


def test_a_stream_that_stood_for_stderr_is_left_open() -> None:
    """absl, which rouge_score brings, closes it when somebody sets up logging anew, as Hydra does."""
    program = (
        "import contextlib, io, logging.config\n"
        "from rapidun.stages.evaluation.metrics import rouge_l\n"
        "stream = io.StringIO()\n"
        "with contextlib.redirect_stderr(stream):\n"
        "    rouge_l(['a'], ['a'])\n"
        "logging.config.dictConfig({'version': 1})\n"
        "print(stream.closed)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
