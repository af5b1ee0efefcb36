"""The one rule of words and phrases in any script: to make keywords, to find them, and to find triggers.

A word is a run of letters, digits and the marks that sit on them; underscores join inside a word (`drop_shields`) and
fall away around it (`_zorgon_`); apostrophes and hyphens part words. Scripts that are written without blanks (Chinese,
Japanese, Thai, Khmer, ...) have no words to be cut at: every two neighbouring letters count as one.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

_ASCII_WORD = re.compile(r"[a-z0-9]+(?:_+[a-z0-9]+)*")
# letters of scripts without blanks between words: Thai to Myanmar, Khmer, Tai, Han, kana, bopomofo, Yi
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029"
    "\u3031-\u3035\u3041-\u3096\u309d-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\ua4cf\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U00018fff\U0001aff0-\U0001b2ff"
    "\U00020000-\U0003ffff"
)
# letters of other scripts than Latin: from Greek on, but for Latin's own later blocks, signs and mathematical letters
_OTHER_SCRIPTS = (
    "\u0370-\u1cff\u1dc0-\u1dff\u1f00-\u1fff\u2c00-\u2c5f\u2c80-\u2fdf\u3005-\ua71f\ua800-\uab2f\uab70-\ufaff\ufb07-\ufeff"
    "\uff66-\uffdf\U00010000-\U0001d3ff\U0001d800-\U0003ffff"
)
# zero-width characters: two that shape the letters around them, and others that are simply not seen
_JOINERS = "\u200c\u200d"
_INVISIBLE = _JOINERS + "\u200b\u2060\ufeff\u00ad\u180e"
# marks beyond this are the variation selectors alone
_MARKS_END = 0x20000
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\uff07", "'"))


def nfc(text: str) -> str:
    """The composed form: what looks the same by Unicode's own rules is the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """Case, composed and decomposed forms, and the forms of the apostrophe made one."""
    return text.lower() if text.isascii() else nfc(nfc(text).casefold()).translate(_APOSTROPHES)


def words(text: str) -> list[str]:
    """The words of a text in order, folded; of a script without blanks, pairs of neighbouring letters."""
    folded = fold(text)
    if folded.isascii():
        return _ASCII_WORD.findall(folded)
    found: list[str] = []
    for match in _word().finditer(folded):
        if match.lastgroup == "run":
            letters = _letter().findall(match.group())
            found += ["".join(pair) for pair in pairwise(letters)] or letters
        else:
            found.append(match.group().rstrip(_JOINERS))
    return found


def is_word(text: str) -> bool:
    """Whether a folded text is one word of the rule, as `words` gives it."""
    return words(text) == [text]


def is_unspaced(letter: str) -> bool:
    """Whether a letter belongs to a script without blanks between words."""
    return _unspaced().match(letter) is not None


def by_script(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts: (words of a script other than Latin, True), (all that lies between, False)."""
    if text.isascii():
        yield text, False
        return
    done = 0
    for match in _other_words().finditer(text):
        yield text[done : match.start()], False
        yield match.group(), True
        done = match.end()
    yield text[done:], False


def other_tokens(text: str) -> list[str]:
    """A word of another script than Latin as one folded token; of a script without blanks, its letters."""
    folded = fold(text)
    tokens: list[str] = []
    for match in _word().finditer(folded):
        tokens += _letter().findall(match.group()) if match.lastgroup == "run" else [match.group().rstrip(_JOINERS)]
    return tokens


def phrase_finder(phrase: str) -> Callable[[str], bool]:
    """Says whether a text holds a phrase of several words or other marks, folded, not as a part of longer words."""
    wanted = fold(phrase.strip())
    pattern = re.compile(_edge(wanted[0], behind=True) + re.escape(wanted) + _edge(wanted[-1], behind=False))
    return lambda text: pattern.search(fold(text)) is not None


def places(phrase: str, text: str) -> Iterator[tuple[int, int]]:
    """Where a phrase stands in a text as it is spelt: case counts, and so does every zero-width character.

    Both in composed form. Not where it is part of a longer word, has a mark or a zero-width character at its ends, or
    is part of a longer run of the same mark (`>>>` in `>>>>`).
    """
    if phrase:
        for match in _phrase(phrase).finditer(text):
            yield match.span()


@lru_cache(maxsize=4096)
def _phrase(phrase: str) -> re.Pattern[str]:
    parts = []
    for char, behind in ((phrase[0], True), (phrase[-1], False)):
        look = "<" if behind else ""
        part = _edge(char, behind=behind) + f"(?{look}![{_INVISIBLE}])"
        if not (char.isalnum() or char == "_"):
            part += f"(?{look}!{re.escape(char)})"
        parts.append(part)
    return re.compile(parts[0] + re.escape(phrase) + parts[1])


def _edge(char: str, *, behind: bool) -> str:
    """What may not stand beside the first (behind) or last letter of a phrase."""
    spaced = (char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M") and not _unspaced().match(char)
    beside = rf"(?<!(?![{_UNSPACED}])\w)" if behind else rf"(?!(?![{_UNSPACED}])\w)"
    beside = beside if spaced else ""
    if not behind:
        return beside + f"(?![{_marks()}])"
    # a letter whose own marks stand before ours is a neighbour too
    return beside + (f"(?<![{_marks()}])" if spaced else "")


@lru_cache(maxsize=1)
def _unspaced() -> re.Pattern[str]:
    return re.compile(f"[{_UNSPACED}]")


@lru_cache(maxsize=1)
def _marks() -> str:
    """A character class's inside: everything that Unicode calls a mark (a twentieth of a second, once)."""
    ranges: list[list[int]] = []
    for code in range(0x300, _MARKS_END):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges) + "\U000e0100-\U000e01ef"


@lru_cache(maxsize=1)
def _letter() -> re.Pattern[str]:
    return re.compile(rf"[^\W_][{_marks()}{_JOINERS}]*")


@lru_cache(maxsize=1)
def _other_words() -> re.Pattern[str]:
    other = rf"(?=[{_OTHER_SCRIPTS}])[^\W_]"
    return re.compile(rf"(?:{other}[{_marks()}{_JOINERS}]*)+")


@lru_cache(maxsize=1)
def _word() -> re.Pattern[str]:
    on = f"[{_marks()}{_JOINERS}]*"
    spaced = rf"(?:(?![{_UNSPACED}])[^\W_]{on})+"
    return re.compile(rf"(?P<run>(?:(?=[{_UNSPACED}])[^\W_]{on})+)|{spaced}(?:_+{spaced})*")
