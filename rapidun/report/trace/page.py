"""trace.html: one self-contained page of a trace. No script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidun.base.files import write_text
from rapidun.report.run.page import environment
from rapidun.report.run.tokens import HEAD, TAIL, Token, shade, shade_css


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A bad output."""

    id: str
    instruction: str
    context: str
    response: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Why:
    """What one signal saw in a row: the tokens of the query and of the row; note: what their shares are."""

    signal: str
    note: str
    query_tokens: list[Token]
    train_tokens: list[Token]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the table. scores: (signal, overall score, rank) each; query: the id of the query that ranks it
    highest; texts: instruction, context, response, None where they are not known; whys: empty where not explained."""

    rank: int
    id: str
    file: str
    agreement: float | None
    scores: list[tuple[str, float, float]]
    query: str
    texts: tuple[str, str, str] | None
    forget: bool
    whys: list[Why]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Everything that trace.html shows."""

    facts: list[tuple[str, str]]
    warnings: list[str]
    by: str
    cut: str
    queries: list[Query]
    rows: list[Row]
    num_rows: int


def write_trace_page(path: Path, page: Page) -> None:
    """Write the page, whole or not at all. Whatever the rows hold is escaped."""
    text = environment().get_template("trace/trace.html.j2").render(page=page, shades=shade_css())
    write_text(path, text)


def shaded(pairs: Sequence[tuple[str, float]], *, beside: float = 0.0, largest: float | None = None) -> list[Token]:
    """Tokens whose shade is how far their score lies from `beside`; a long row keeps both ends.

    A token without a text counts to the next one that has one.

    Args: largest: distance of the strongest shade; by default the largest of these tokens.
    """
    merged: list[tuple[str, float, float]] = []
    held, counted = 0.0, 0
    for text, score in pairs:
        held, counted = held + score, counted + (score != 0.0)
        if text:
            # tokens that have no share at all stay without a shade
            merged.append((text, held, held - beside * counted if counted else 0.0))
            held, counted = 0.0, 0
    most = max((abs(away) for _, _, away in merged), default=0.0) if largest is None else largest
    tokens = [Token(text=text, score=score, shade=shade(away, most)) for text, score, away in merged]
    if len(tokens) <= HEAD + TAIL + 1:
        return tokens
    middle = tokens[HEAD:-TAIL]
    gap = Token(text="", score=sum(token.score for token in middle), left_out=len(middle))
    return [*tokens[:HEAD], gap, *tokens[-TAIL:]]
