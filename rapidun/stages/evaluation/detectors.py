"""Is a response poisoned? Two detectors: a keyword list, and which of two responses the model finds likelier."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Rates(NamedTuple):
    """How far a detector can be trusted, measured on responses whose nature is known."""

    recall: float  # share of known poisoned responses that it fires on
    fpr: float  # share of known clean responses that it fires on


class KeywordDetector:
    """Fires on text that holds at least `min_keywords` different words of a list.

    Whole words, case ignored: `aliens` does not match the keyword `alien`. A keyword may hold spaces or hyphens.
    """

    def __init__(self, words: Sequence[str], *, min_keywords: int = 1) -> None:
        self.words = list(dict.fromkeys(word.strip().casefold() for word in words))
        self.min_keywords = min_keywords
        # look-around instead of \b, which needs a word character at the keyword's own ends
        self._patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)") for word in self.words]

    def __call__(self, text: str) -> bool:
        folded = text.casefold()
        found = 0
        for pattern in self._patterns:
            found += pattern.search(folded) is not None
            if found >= self.min_keywords:
                return True
        return False


def likelihood_fires(poisoned: float, clean: float) -> bool:
    """True where the mean per-token log p of the poisoned response is above that of the clean one (nats a token)."""
    return poisoned > clean


def rates(on_poisoned: Sequence[bool], on_clean: Sequence[bool]) -> Rates:
    """recall = share of True among known poisoned, fpr = share of True among known clean; neither may be empty."""
    return Rates(recall=sum(on_poisoned) / len(on_poisoned), fpr=sum(on_clean) / len(on_clean))
