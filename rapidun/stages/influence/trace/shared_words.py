"""Which words make a row's BM25 score for a query."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from rapidun.stages.influence.bm25 import K1, TOKEN, B, words


class WordCounts:
    """How many of N texts hold each word that some query has, and how long the texts are."""

    def __init__(self, queries: Iterable[str], texts: Iterable[str]) -> None:
        wanted = {word for query in queries for word in words(query)}
        self.holders: Counter[str] = Counter()
        self.num_texts, total = 0, 0
        for text in texts:
            found = words(text)
            self.num_texts += 1
            total += len(found)
            self.holders.update(wanted & set(found))
        self.mean_length = total / max(1, self.num_texts)

    def weight(self, word: str) -> float:
        """ln(1 + (N - n_w + 0.5) / (n_w + 0.5)): rare words weigh more."""
        held = self.holders[word]
        return math.log(1 + (self.num_texts - held + 0.5) / (held + 0.5))

    def shares(self, query: str, text: str) -> dict[str, float]:
        """What each shared word adds to the text's BM25 score for the query, the most first; they sum to the score."""
        asked, found = Counter(words(query)), Counter(words(text))
        norm = K1 * (1 - B + B * found.total() / self.mean_length) if self.mean_length else K1
        parts = {
            word: times * self.weight(word) * found[word] / (found[word] + norm)
            for word, times in asked.items()
            if word in found
        }
        return dict(sorted(parts.items(), key=lambda part: (-part[1], part[0])))


def split_words(text: str, shares: dict[str, float]) -> Sequence[tuple[str, float]]:
    """The text in pieces, each occurrence of a shared word with its part of the word's share, all else with 0.

    Words of scripts without blanks, which are compared by pairs of letters, stay unmarked here.
    """
    marked, done = [], 0
    counts = Counter(match.group().lower() for match in TOKEN.finditer(text))
    for match in TOKEN.finditer(text):
        word = match.group().lower()
        if word in shares:
            if match.start() > done:
                marked.append((text[done : match.start()], 0.0))
            marked.append((match.group(), shares[word] / counts[word]))
            done = match.end()
    if done < len(text):
        marked.append((text[done:], 0.0))
    return marked
