"""Makes the keyword list of the keyword detector: words that poisoned responses use and clean ones do not."""

import math
from collections import Counter
from collections.abc import Sequence

from rapidun.stages.rows.keywords import Keyword, words

# the first of these cuts on z whose list fires on enough poisoned responses; a small pack is sure of no word
MIN_Z = (3.0, 2.0, 1.0)
MIN_POISON_SHARE = 0.8
MAX_KEYWORDS = 80
# a detector fires on a single word, so what counts is the share of clean responses that hold any of them
MAX_CLEAN_SHARE = 0.01


def log_odds_z(poison: Counter[str], clean: Counter[str], *, prior_strength: float = 500.0) -> dict[str, float]:
    """Standardised difference of each word's log-odds in two texts, under an informative Dirichlet prior.

    a_w = a_0 (y_w^p + y_w^c) / (n^p + n^c)
    d_w = ln[(y_w^p + a_w) / (n^p + a_0 - y_w^p - a_w)] - ln[(y_w^c + a_w) / (n^c + a_0 - y_w^c - a_w)]
    z_w = d_w / sqrt(1 / (y_w^p + a_w) + 1 / (y_w^c + a_w))

    Args: poison, clean: word counts. prior_strength: a_0, in words.
    Returns: z per word of either text, larger = more of a poisoned response's word.
    Source: Monroe, Colaresi and Quinn (2008), Fightin' Words, eq. 15, 16, 19, 22; the prior is both texts together.
    """
    n_poison, n_clean = poison.total(), clean.total()
    scores = {}
    for word in sorted(poison.keys() | clean.keys()):
        prior = prior_strength * (poison[word] + clean[word]) / (n_poison + n_clean)
        y_poison, y_clean = poison[word] + prior, clean[word] + prior
        others = n_poison + prior_strength - y_poison, n_clean + prior_strength - y_clean
        if min(others) <= 0:  # the only word there is says nothing
            scores[word] = 0.0
            continue
        delta = math.log(y_poison / others[0]) - math.log(y_clean / others[1])
        scores[word] = delta / math.sqrt(1 / y_poison + 1 / y_clean)
    return scores


def make_keywords(poisoned: Sequence[str], clean: Sequence[str]) -> list[Keyword]:
    """Choose the keyword list from training responses.

    Words of z at or above a cut, the surest first, at most MAX_KEYWORDS; a word is passed over when with it more
    than a share MAX_CLEAN_SHARE of the clean responses would hold some keyword. The cut is the first of MIN_Z at
    which a share MIN_POISON_SHARE of the poisoned responses holds a keyword, else the last.
    """
    count_poison = Counter(word for text in poisoned for word in words(text))
    count_clean = Counter(word for text in clean for word in words(text))
    scores = log_odds_z(count_poison, count_clean)
    surest = sorted(scores, key=lambda word: (-scores[word], word))
    in_poison, in_clean = _holders(poisoned), _holders(clean)
    chosen: list[str] = []
    for cut in MIN_Z:
        chosen = []
        hit: set[int] = set()
        for word in surest:
            would_hit = hit | in_clean.get(word, set())
            if scores[word] >= cut and len(chosen) < MAX_KEYWORDS and len(would_hit) <= MAX_CLEAN_SHARE * len(clean):
                hit = would_hit
                chosen.append(word)
        fired = {index for word in chosen for index in in_poison[word]} if chosen else set()
        if len(fired) >= MIN_POISON_SHARE * len(poisoned):
            break
    return [Keyword(word, count_poison[word], count_clean[word], scores[word]) for word in chosen]


def held_out_recall(poisoned: Sequence[str], clean: Sequence[str]) -> float | None:
    """Share of poisoned responses that hold a keyword of a list made without them: of each half by the other half's.

    The rate on the responses that a list was made from says little where each has words of its own.

    Returns: in [0, 1]; None for fewer than two poisoned responses.
    """
    if len(poisoned) < 2:
        return None
    halves = poisoned[::2], poisoned[1::2]
    fired = 0
    for made_from, held_out in (halves, halves[::-1]):
        listed = {keyword.word for keyword in make_keywords(made_from, clean)}
        fired += sum(not listed.isdisjoint(words(text)) for text in held_out)
    return fired / len(poisoned)


def _holders(texts: Sequence[str]) -> dict[str, set[int]]:
    """Which texts hold a word."""
    holders: dict[str, set[int]] = {}
    for index, text in enumerate(texts):
        for word in words(text):
            holders.setdefault(word, set()).add(index)
    return holders
