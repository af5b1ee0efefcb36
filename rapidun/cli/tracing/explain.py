"""What in the best rows made them be found: token by token, by each signal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.cli.tracing.signals import Asked, Encoder
from rapidun.config.influence import Score
from rapidun.config.trace import Signal
from rapidun.report.trace.page import Why, shaded
from rapidun.stages.influence.index.gradients import GradientRows, settings_of
from rapidun.stages.influence.index.manifest import open_manifest
from rapidun.stages.influence.tokenwise import By, token_scores, token_texts
from rapidun.stages.influence.trace.hidden import token_shares
from rapidun.stages.influence.trace.shared_words import WordCounts, split_words

Pairs = Sequence[tuple[int, int]]  # (row, query): numbers in `Asked`


class Explained(NamedTuple):
    """A pair's split score. `query_tokens` and `train_tokens`: (text, share); either side sums to `score`."""

    row: int
    query: int
    signal: Signal
    score: float
    query_tokens: list[tuple[str, float]]
    train_tokens: list[tuple[str, float]]

    def why(self) -> Why:
        """As the page shows it."""
        sides, beside = (self.query_tokens, self.train_tokens), [0.0, 0.0]
        if self.signal is Signal.repsim:
            # hidden states have much in common whatever they say: what a token has beyond the mean of its row tells
            held = [[share for _, share in side if share] for side in sides]
            beside = [sum(side) / max(1, len(side)) for side in held]
        query, train = (shaded(side, beside=mean) for side, mean in zip(sides, beside, strict=True))
        return Why(signal=self.signal.name, note=NOTES[self.signal], query_tokens=query, train_tokens=train)


NOTES = {
    Signal.repsim: "Shares of the cosine of hidden states; the shade is how far a token's share lies above (or below, "
    "underlined) the mean of its row.",
    Signal.bm25: "Words that both have; rare words weigh more.",
    Signal.gradients: "Shares of the cosine (or product) of gradients: the model's work at a token's place.",
}


def explain(
    asked: Asked, pairs: Pairs, *, by: Sequence[Signal], encoder: Encoder | None, index: Path | None
) -> Iterator[Explained]:
    """Split the pairs' scores by each signal.

    Args: encoder: for repsim. index: for gradients, whose settings count.
    """
    if Signal.repsim in by and encoder is not None:
        yield from _repsim(asked, pairs, encoder)
    if Signal.bm25 in by:
        yield from _bm25(asked, pairs)
    if Signal.gradients in by and index is not None:
        yield from _gradients(asked, pairs, index)


def _repsim(asked: Asked, pairs: Pairs, encoder: Encoder) -> Iterator[Explained]:
    reader, tokenizer = encoder.reader(), encoder.tokenizer
    for row, query in pairs:
        sides = encoder.known([asked.queries[query], asked.rows[row]])
        found = token_shares(reader, *sides)
        texts = [token_texts(tokenizer, side.input_ids) for side in sides]
        yield Explained(
            row,
            query,
            Signal.repsim,
            found.score,
            list(zip(texts[0], found.query, strict=True)),
            list(zip(texts[1], found.train, strict=True)),
        )


def _bm25(asked: Asked, pairs: Pairs) -> Iterator[Explained]:
    queries = ["\n".join(query.texts) for query in asked.queries]
    counts = WordCounts(queries, ("\n".join(row.texts) for row in asked.rows))
    for row, query in pairs:
        text = "\n".join(asked.rows[row].texts)
        shares = counts.shares(queries[query], text)
        sides = [list(split_words(side, shares)) for side in (queries[query], text)]
        yield Explained(row, query, Signal.bm25, sum(shares.values()), sides[0], sides[1])


def _gradients(asked: Asked, pairs: Pairs, index: Path) -> Iterator[Explained]:
    manifest = open_manifest(index)
    settings = settings_of(manifest.recipe["source"], k=manifest.k, device=asked.settings.device)
    rows = GradientRows(settings, model=str(asked.model), adapter=asked.adapter, records=[])
    by_query: dict[int, list[int]] = {}
    for row, query in pairs:
        by_query.setdefault(query, []).append(row)
    for query, some in by_query.items():
        asks, *trained = rows.encode([asked.queries[query], *(asked.rows[row] for row in some)])
        known = [(row, one) for row, one in zip(some, trained, strict=True) if one is not None]
        if asks is None or not known:
            continue
        for row, one in known:
            found = token_scores(
                rows.model,
                rows.parameters,
                asks,
                [one],
                pad_token_id=rows.tokenizer.pad_token_id,
                reduction=settings.loss.name,
                by=By.position,
            )
            norm = found.query_norm * float(found.train_norms[0]) if asked.settings.score is Score.cosine else 1.0
            factor = 1.0 / norm if norm > 0 else 0.0
            sides = [
                list(zip(token_texts(rows.tokenizer, side.input_ids), (scores * factor).tolist(), strict=True))
                for side, scores in ((asks, found.query[0]), (one, found.train[0]))
            ]
            yield Explained(row, query, Signal.gradients, float(found.dots[0]) * factor, sides[0], sides[1])


def as_json(found: Explained, asked: Asked) -> Mapping[str, Any]:
    """An entry of tokens.json, as `rapidun index top --tokens` writes it."""
    return {
        "query": asked.queries[found.query].id,
        "train": asked.rows[found.row].id,
        "by": found.signal.name,
        "score": found.score,
        "query_tokens": [list(pair) for pair in found.query_tokens],
        "train_tokens": [list(pair) for pair in found.train_tokens],
    }
