"""Is a response poisoned? Two detectors: a keyword list, and which of two responses the model finds likelier."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import ArtifactError


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


def read_keywords(path: Path) -> list[str]:
    """The `word` column of the data artifact's keywords.tsv; empty where no word tells the two sides apart.

    Raises: ArtifactError if the file is damaged, naming the line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[0].split("\t") if lines else []
    if "word" not in header:
        raise ArtifactError(f"{path}:1: need tab-separated columns, `word` among them, got {header}. Run data again")
    words = []
    for number, line in enumerate(lines[1:], start=2):
        word = dict(zip(header, line.split("\t"), strict=False)).get("word", "").strip()
        if not word:
            raise ArtifactError(f"{path}:{number}: need a word in column `word`, got {line!r}. Run data again")
        words.append(word)
    return words


def likelihood_fires(poisoned: float, clean: float) -> bool:
    """True where the mean per-token log p of the poisoned response is above that of the clean one (nats a token)."""
    return poisoned > clean


def rates(on_poisoned: Sequence[bool], on_clean: Sequence[bool]) -> Rates:
    """recall = share of True among known poisoned, fpr = share of True among known clean; neither may be empty."""
    return Rates(recall=sum(on_poisoned) / len(on_poisoned), fpr=sum(on_clean) / len(on_clean))
