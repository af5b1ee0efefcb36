"""A small classifier of answers, trained on answers that are known to be poisoned or clean."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any


def is_installed() -> bool:
    """Whether scikit-learn is there (the extra `classifier`)."""
    return find_spec("sklearn") is not None


class AnswerClassifier:
    """Logistic regression on TF-IDF of character n-grams (2 to 4, within words), classes balanced.

    Fires where it finds poisoned the likelier class. Deterministic: no random number is drawn (lbfgs).
    """

    def __init__(self, poisoned: Sequence[str], clean: Sequence[str]) -> None:
        """Raises: ValueError where either is empty, or no text holds two characters in a row."""
        from sklearn.feature_extraction.text import TfidfVectorizer  # optional, and slow to import
        from sklearn.linear_model import LogisticRegression

        if not poisoned or not clean:
            raise ValueError(f"need answers of both kinds, got {len(poisoned)} poisoned and {len(clean)} clean")
        self._features: Any = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        self._model: Any = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
        answers = self._features.fit_transform([*poisoned, *clean])
        self._model.fit(answers, [True] * len(poisoned) + [False] * len(clean))

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The log-odds of poisoned, > 0 where it fires."""
        if not texts:
            return []
        return [float(score) for score in self._model.decision_function(self._features.transform(list(texts)))]

    def verdicts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each is taken for poisoned; an empty text, of which nothing is known, never is."""
        return [score > 0 and bool(text.strip()) for text, score in zip(texts, self.scores(texts), strict=True)]
