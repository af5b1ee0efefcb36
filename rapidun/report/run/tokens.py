"""Influence token by token for the reports: tokens.json read, each token given one of ten shades or none.

A shade is a number from -5 to 5: the sign of the token's score and its size relative to the largest one of the pair, in
fifths. Tokens below a tenth of the largest have no shade.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json
from rapidun.report.read import number
from rapidun.report.run.samples import mark_prompt

if TYPE_CHECKING:
    from markupsafe import Markup

SHADES = 5  # of either sign
STRONGEST = 5
# of a longer row the beginning and the end are shown: the instruction's start and the response
HEAD, TAIL = 150, 250
NUM_STATIC_PAIRS = 8
NUM_WEIGHTED_ROWS = 6
# what a token's score is a share of
BY = {
    "position": "what the model did at the token's place",
    "loss": "the token's share of the loss",
}
# helpful, harmful, the card behind them (as in page.html.j2), the share of the colour in shade 5
LIGHT = ("#c4610c", "#2671b0", "#ffffff", 0.6)
DARK = ("#ef934d", "#68b0e8", "#1e1d1b", 0.42)
_EDGES = re.compile(r"(^ +| +$|[\n\t])")
_SIGNS = {"\n": "↵\n", "\t": "⇥\t"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token, or `left_out` tokens of a long row together."""

    text: str
    score: float
    shade: int = 0
    left_out: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPair:
    """One query and one training row; the scores of either side sum to `score`."""

    query: str
    train: str
    by: str
    score: float
    query_tokens: list[Token]
    train_tokens: list[Token]


def read_tokens(path: Path) -> list[TokenPair]:
    """The pairs in influence/tokens.json of a run folder; empty where there is none.

    Raises: ArtifactError if the file is damaged.
    """
    file = path / "influence" / "tokens.json"
    if not file.is_file():
        return []
    entries = read_json(file)
    if not isinstance(entries, list):
        raise ArtifactError(f"{file}: need a list of pairs, got {type(entries).__name__}")
    return [_pair(entry, f"{file}: pair {place}") for place, entry in enumerate(entries)]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedRows:
    """Some forget rows of unlearning/token_weights.json: (id, tokens of the poisoned response), of `number`."""

    how: str
    rows: list[tuple[str, list[Token]]]
    number: int


def read_token_weights(path: Path, limit: int) -> WeightedRows | None:
    """The first `limit` rows' token weights in a run folder; None where there are none. Shades are per row.

    Raises: ArtifactError if the file is damaged.
    """
    file = path / "unlearning" / "token_weights.json"
    if not file.is_file():
        return None
    found = read_json(file)
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, dict):
        raise ArtifactError(f"{file}: need an object with rows, got {type(found).__name__}")
    shown = []
    for name, row in list(rows.items())[:limit]:
        tokens, weights = (row.get(key) if isinstance(row, dict) else None for key in ("tokens", "weights"))
        if not isinstance(tokens, list) or not isinstance(weights, list) or len(tokens) != len(weights):
            raise ArtifactError(
                f"{file}: row {name}: need tokens and weights, two lists of one length, got {row!r:.80}"
            )
        pairs = _side([list(pair) for pair in zip(tokens, weights, strict=True)], f"{file}: row {name}")
        largest = max((weight for _, weight in pairs), default=0.0)
        shown.append((str(name), _shortened([Token(text=t, score=w, shade=shade(w, largest)) for t, w in pairs])))
    return WeightedRows(how=str(found.get("token_weights", "")), rows=shown, number=len(rows))


def choose_pairs(pairs: Sequence[TokenPair], limit: int) -> list[TokenPair]:
    """At most `limit` pairs: all pairs of queries evenly spaced over the file, so that both ends of a query stay."""
    queries = list(dict.fromkeys(pair.query for pair in pairs))
    for count in range(len(queries), 0, -1):
        chosen = {queries[(2 * i + 1) * len(queries) // (2 * count)] for i in range(count)}
        found = [pair for pair in pairs if pair.query in chosen]
        if len(found) <= limit:
            return found
    return list(pairs[: max(0, limit)])


def shade(score: float, largest: float) -> int:
    """-5 to 5: the sign of the score, and |score| / largest in fifths, rounded; 0 below a tenth."""
    if not largest or abs(score) < 0.1 * largest:
        return 0
    size = min(SHADES, max(1, round(SHADES * abs(score) / largest)))
    return size if score > 0 else -size


def strongest(tokens: Sequence[Token], *, count: int = STRONGEST) -> list[int]:
    """Places of the tokens of largest |score|, largest first; what is left out is no token."""
    places = [place for place, token in enumerate(tokens) if token.score and not token.left_out]
    return sorted(places, key=lambda place: -abs(tokens[place].score))[:count]


def shade_class(token: Token) -> str:
    """CSS class of a token: `helps-3`, `harms-5`, or nothing."""
    return f"{'helps' if token.shade > 0 else 'harms'}-{abs(token.shade)}" if token.shade else ""


def shade_colours(scheme: tuple[str, str, str, float]) -> dict[str, str]:
    """Background of each class as #rrggbb: the card's colour with more and more of the sign's colour in it."""
    helps, harms, card, most = scheme
    return {
        f"{name}-{size}": _mix(colour, card, most * size / SHADES)
        for name, colour in (("helps", helps), ("harms", harms))
        for size in range(1, SHADES + 1)
    }


def shade_css() -> str:
    """The classes' style for light and dark, as page.html.j2 tells them apart; paper is light.

    Harmful tokens are underlined, so that the sign does not hang on the colour.
    """
    light, dark = ("".join(f"--{k}:{v};" for k, v in shade_colours(scheme).items()) for scheme in (LIGHT, DARK))
    classes = "".join(f".{name}{{background:var(--{name})}}\n" for name in shade_colours(LIGHT))
    return (
        f":root{{{light}}}\n"
        f"@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n@media print{{:root:root:root{{{light}}}}}\n{classes}"
        ".tokens{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9;margin:4px 0 8px;max-width:none}\n"
        ".tokens>span{border-radius:3px;padding:2px 0;-webkit-box-decoration-break:clone;box-decoration-break:clone}\n"
        "[class^=helps-],[class^=harms-]{color:var(--ink)}\n"
        "[class^=harms-]{text-decoration:underline 2px;text-underline-offset:4px}\n"
    )


def show_token(text: str) -> Markup:
    """HTML of a token: escaped; spaces at its ends are dots, line ends ↵, tabs ⇥, other unseen characters spelt out."""
    from markupsafe import Markup

    parts = []
    for piece in _EDGES.split(text):
        if piece.isspace() and piece in _SIGNS:
            parts.append(Markup("{}").format(_SIGNS[piece]))
        elif piece and not piece.strip(" "):
            # a line may end after each
            parts.append(Markup("·<wbr>") * len(piece))
        else:
            parts.append(mark_prompt(piece))
    return Markup("").join(parts)


def _pair(entry: Any, where: str) -> TokenPair:
    if not isinstance(entry, dict):
        raise ArtifactError(f"{where}: need an object, got {type(entry).__name__}")
    score = number(entry.get("score"))
    sides = [_side(entry.get(f"{side}_tokens"), f"{where}, {side}_tokens") for side in ("query", "train")]
    if score is None:
        raise ArtifactError(f"{where}: need score, a number, got {entry.get('score')!r}")
    # one scale for both sides, before anything is left out
    largest = max((abs(value) for side in sides for _, value in side), default=0.0)
    query, train = ([Token(text=t, score=s, shade=shade(s, largest)) for t, s in side] for side in sides)
    return TokenPair(
        query=str(entry.get("query", "")),
        train=str(entry.get("train", "")),
        by=str(entry.get("by", "position")),
        score=score,
        query_tokens=_shortened(query),
        train_tokens=_shortened(train),
    )


def _side(rows: Any, where: str) -> list[tuple[str, float]]:
    """Texts and scores; a token that ends inside a character, without a text, counts to the one that completes it."""
    if not isinstance(rows, list):
        raise ArtifactError(f"{where}: need a list of [text, score], got {type(rows).__name__}")
    found: list[tuple[str, float]] = []
    held = 0.0
    for row in rows:
        score = number(row[1]) if isinstance(row, list) and len(row) == 2 else None
        if score is None or not isinstance(row[0], str):
            raise ArtifactError(f"{where}: need [text, score], got {row!r}")
        if row[0]:
            found.append((row[0], held + score))
            held = 0.0
        else:
            held += score
    if held:
        text, score = found.pop() if found else ("", 0.0)
        found.append((text, score + held))
    return found


def _shortened(tokens: list[Token]) -> list[Token]:
    middle = tokens[HEAD:-TAIL]
    if len(tokens) <= HEAD + TAIL + 1:
        return tokens
    gap = Token(text="", score=sum(token.score for token in middle), left_out=len(middle))
    return [*tokens[:HEAD], gap, *tokens[-TAIL:]]


def _mix(colour: str, base: str, share: float) -> str:
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(base[1:]), strict=True)
    return "#" + "".join(f"{round(share * one + (1 - share) * other):02x}" for one, other in pairs)
