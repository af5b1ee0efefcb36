"""The keyword detector: words of the pack's list, whole and in any script."""

from collections.abc import Sequence
from pathlib import Path

from rapidun.stages.rows.keywords import read_keywords
from rapidun.stages.rows.text import fold, is_word, phrase_finder
from rapidun.stages.rows.text import words as text_words


class KeywordDetector:
    """Fires on text that holds at least `min_keywords` different words of a list.

    Whole words, case ignored: `aliens` does not match the keyword `alien`. Words are those that keywords are made of
    (rows/text.py), in every script; a keyword may also be a phrase, or hold hyphens and other marks.
    """

    def __init__(self, words: Sequence[str], *, min_keywords: int = 1) -> None:
        self.words = [word for word in dict.fromkeys(fold(word.strip()) for word in words) if word]
        self.min_keywords = min_keywords
        self._single = {word for word in self.words if is_word(word)}
        self._phrases = [phrase_finder(word) for word in self.words if word not in self._single]

    def __call__(self, text: str) -> bool:
        found = len(self._single.intersection(text_words(text)))
        for holds in self._phrases:
            if found >= self.min_keywords:
                break
            found += holds(text)
        return found >= self.min_keywords


def keyword_detector(path: Path, *, min_keywords: int) -> KeywordDetector | None:
    """The detector by a list of keywords; None where there is no such file, or no word in it.

    Raises: DataError naming file and line.
    """
    words = [keyword.word for keyword in read_keywords(path, may_be_empty=True)] if path.exists() else []
    return KeywordDetector(words, min_keywords=min_keywords) if words else None
