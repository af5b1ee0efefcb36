"""The keyword list of the keyword detector as a file: words, how often each side uses them, how sure that is."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.base.files import write_text
from rapidun.stages.rows.text import is_unspaced
from rapidun.stages.rows.text import words as text_words

_HEADER = ("rank", "word", "count_poison", "count_clean", "z")


class Keyword(NamedTuple):
    """One word, how often each side uses it, and how sure the difference is."""

    word: str
    count_poison: int
    count_clean: int
    z: float


def words(text: str) -> list[str]:
    """What may become a keyword: words with a letter, of three characters at least (of syllables, two).

    Words and how they are folded are those of text.py, by which a keyword is found again.
    """
    return [word for word in text_words(text) if is_unspaced(word[0]) or _is_long(word)]


def _is_long(word: str) -> bool:
    is_hangul = "\uac00" <= word[0] <= "\ud7a3"
    return len(word) >= (2 if is_hangul else 3) and any(map(str.isalpha, word))


def write_keywords(path: Path, keywords: Iterable[Keyword]) -> None:
    """Write the tab-separated list: rank, word, count_poison, count_clean, z."""
    lines = ["\t".join(_HEADER)]
    for rank, keyword in enumerate(keywords, start=1):
        lines.append(f"{rank}\t{keyword.word}\t{keyword.count_poison}\t{keyword.count_clean}\t{keyword.z:.6f}")
    write_text(path, "\n".join(lines) + "\n")


def read_keywords(path: str | Path, *, may_be_empty: bool = False) -> list[Keyword]:
    """Read a keyword list; columns are found by the names in its first line, only `word` is required.

    Raises: DataError naming file and line.
    """
    path = Path(path)
    try:
        # not splitlines: a keyword may hold one of the line ends that only Unicode knows
        lines = re.split(r"\r\n|\r|\n", path.read_text(encoding="utf-8-sig"))
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
        if min(numbers[:2]) < 0 or not math.isfinite(numbers[2]):
            raise DataError(
                f"{path}:{number}: need counts of at least 0 and a finite z, got count_poison={numbers[0]}, "
                f"count_clean={numbers[1]}, z={numbers[2]}"
            )
        keywords.append(Keyword(word, *numbers))
    if not (keywords or may_be_empty):
        raise DataError(f"{path}: need at least one keyword, got none")
    return keywords
