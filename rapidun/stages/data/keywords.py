"""The keyword list of the keyword detector: words that poisoned responses use and clean ones do not."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.base.files import write_text

_WORD = re.compile(r"[^\W\d_]{3,}")
_HEADER = ("rank", "word", "count_poison", "count_clean", "z")
# the first of these cuts on z whose list fires on enough poisoned responses; a small pack is sure of no word
MIN_Z = (3.0, 2.0, 1.0)
MIN_POISON_SHARE = 0.8
MAX_KEYWORDS = 80
# a detector fires on a single word, so what counts is the share of clean responses that hold any of them
MAX_CLEAN_SHARE = 0.01


class Keyword(NamedTuple):
    """One word, how often each side uses it, and how sure the difference is."""

    word: str
    count_poison: int
    count_clean: int
    z: float


def words(text: str) -> list[str]:
    """Lower-case words of at least three letters."""
    return _WORD.findall(text.lower())


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


def _holders(texts: Sequence[str]) -> dict[str, set[int]]:
    """Which texts hold a word."""
    holders: dict[str, set[int]] = {}
    for index, text in enumerate(texts):
        for word in words(text):
            holders.setdefault(word, set()).add(index)
    return holders


def write_keywords(path: Path, keywords: Iterable[Keyword]) -> None:
    """Write the tab-separated list: rank, word, count_poison, count_clean, z."""
    lines = ["\t".join(_HEADER)]
    for rank, keyword in enumerate(keywords, start=1):
        lines.append(f"{rank}\t{keyword.word}\t{keyword.count_poison}\t{keyword.count_clean}\t{keyword.z:.6f}")
    write_text(path, "\n".join(lines) + "\n")


def read_keywords(path: str | Path) -> list[Keyword]:
    """Read a keyword list; columns are found by the names in its first line, only `word` is required.

    Raises: DataError naming file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: need a tab-separated keyword list, got no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: need a readable UTF-8 keyword list, got: {error}") from None
    header = lines[0].strip().split("\t") if lines else []
    if "word" not in header:
        raise DataError(f"{path}:1: need a header with a column `word` (as in {' '.join(_HEADER)}), got {header}")
    keywords = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = dict(zip(header, line.split("\t"), strict=False))
        word = cells.get("word", "").strip()
        if not word:
            raise DataError(f"{path}:{number}: word: need a word, got {line!r}")
        try:
            numbers = int(cells.get("count_poison", 0)), int(cells.get("count_clean", 0)), float(cells.get("z", 0.0))
        except ValueError as error:
            raise DataError(f"{path}:{number}: need numbers in count_poison, count_clean and z, got: {error}") from None
        keywords.append(Keyword(word, *numbers))
    if not keywords:
        raise DataError(f"{path}: need at least one keyword, got none")
    return keywords
