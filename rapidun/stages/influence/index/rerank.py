"""The best rows of each query, scored again by the gradients themselves: the score of `influence=exact`.

The rows that some query asks for are cut into pieces. A piece and the queries go through the model together, and every
inner product between them is taken (gram.py), in as many passes as the memory asks for. What a piece gave is a file
below OUT/rerank, so that a run that was stopped goes on with the next piece.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rapidun.base.errors import ArtifactError, ConfigError, ModelError
from rapidun.base.files import CHECK, fits_its_seal, read_json, sealed, sha256_json, write_json
from rapidun.base.limits import refusing
from rapidun.config.influence import Score
from rapidun.stages.influence.gradients.params import TrackedParameter
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.index.gradients import GradientRows
from rapidun.stages.influence.index.output import Ranked
from rapidun.stages.influence.precondition import Preconditioner
from rapidun.stages.influence.scores import influence_scores
from rapidun.stages.influence.sinks import kept_nbytes
from rapidun.stages.rows.encode import Encoded

FOLDER = "rerank"
# rows and queries of a piece: with half of them queries, their inner products take 67 MB
MOST_ROWS = 4096


class Piece(NamedTuple):
    """Some queries, and some of the rows that they ask for, as numbers."""

    queries: list[int]
    rows: list[int]


def rerank(
    found: Sequence[Sequence[tuple[int, float]]],
    rows: GradientRows,
    queries: Sequence[Encoded],
    trained: Mapping[int, Encoded | None],
    *,
    num_exact: int,
    score: Score,
    preconditioner: Preconditioner | None = None,
    memory_bytes: float,
    folder: Path,
    key: str,
    on_row: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[list[Ranked]]:
    """The first `num_exact` rows of each query by their exact scores, then the others as they were.

    Args:
        found: of each query (row, score by the sketch), the best first.
        queries: the queries' tokens. trained: those of every row among the first; None for one that is left out, which
            has no influence.
        memory_bytes: for kept gradients, beside the model, the activations of a batch and the products of one slice.
        folder: where the result goes; pieces are kept below it meanwhile.
        key: what the scores depend on beside these rows: index, queries, factors.
        on_row: told (rows done, rows in all). tell: of a piece that is damaged and made anew.
    Returns: equal exact scores leave the earlier row first.
    Raises: ConfigError if the memory does not do, ModelError if a loss or gradient is not finite (names the row).
    """
    wanted = [[row for row, _ in pairs[:num_exact]] for pairs in found]
    known = [row for row in trained.values() if row is not None]
    length = max(len(row.input_ids) for row in (*queries, *known))
    pieces = list(
        plan(wanted, parameters=rows.parameters, length=length, dtype=_dtype(rows), memory_bytes=memory_bytes)
    )
    exact: dict[tuple[int, int], float] = {}
    done, total = 0, sum(len(piece.rows) for piece in pieces)
    for piece in pieces:
        name = sha256_json([key, score.name, [sorted(wanted[query]) for query in piece.queries], piece])
        path = folder / FOLDER / f"{name[:24]}.json"
        scores = _kept(path, name, tell)
        if scores is None:

            def report(share: float, done: int = done, size: int = len(piece.rows)) -> None:
                if on_row is not None:
                    on_row(done + int(share * size), total)

            scores = _scores(
                piece,
                wanted,
                rows,
                queries,
                trained,
                score=score,
                preconditioner=preconditioner,
                memory_bytes=memory_bytes,
                report=report,
            )
            with refusing(into=folder):
                write_json(path, sealed({"piece": name, "scores": scores}))
        exact.update({(query, row): value for query, row, value in scores})
        done += len(piece.rows)
        if on_row is not None:
            on_row(done, total)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    ranked = []
    for query, pairs in enumerate(found):
        again = [Ranked(row, exact[query, row], old, True) for row, old in pairs[:num_exact]]
        again.sort(key=lambda one: (-one.score, one.row))
        ranked.append(again + [Ranked(row, old, old) for row, old in pairs[num_exact:]])
    return ranked


def plan(
    wanted: Sequence[Sequence[int]],
    *,
    parameters: Sequence[TrackedParameter],
    length: int,
    dtype: torch.dtype,
    memory_bytes: float,
) -> Iterator[Piece]:
    """Cut the work so that the gradients of a piece's rows and queries fit into the memory, weight by weight at least.

    With n rows in one pass and q queries, pieces of m = max(q, n - q) rows cost least: the queries' gradients are taken
    again for each piece, and a piece of q + m > n rows takes (q + m) / n passes.

    Args: wanted: of each query the rows it asks for. length: of the longest row, in tokens.
    Raises: ConfigError if one query and one row do not fit.
    """
    needs = [kept_nbytes(parameter, [length], dtype) for parameter in parameters]
    most = min(MOST_ROWS, int(memory_bytes // max(needs)))
    if most < 2:
        raise ConfigError(
            f"index: need at least {2 * max(needs) / 1e9:.3f} GB for exact scores of rows of up to {length} tokens, "
            f"got {memory_bytes / 1e9:.3f}. Raise --memory-gb"
        )
    at_once = int(memory_bytes // sum(needs))
    for start in range(0, len(wanted), most // 2):
        queries = list(range(start, min(start + most // 2, len(wanted))))
        rows = sorted({row for query in queries for row in wanted[query]})
        size = min(max(len(queries), at_once - len(queries)), most - len(queries))
        for left in range(0, len(rows), size):
            yield Piece(queries, rows[left : left + size])


def _scores(
    piece: Piece,
    wanted: Sequence[Sequence[int]],
    rows: GradientRows,
    queries: Sequence[Encoded],
    trained: Mapping[int, Encoded | None],
    *,
    score: Score,
    preconditioner: Preconditioner | None,
    memory_bytes: float,
    report: Callable[[float], None],
) -> list[tuple[int, int, float]]:
    """(query, row, score) of every pair of the piece that is asked for."""
    asked = [(query, row) for query in piece.queries for row in set(wanted[query]) & set(piece.rows)]
    known = [(row, encoded) for row in piece.rows if (encoded := trained[row]) is not None]
    places = {row: place for place, (row, _) in enumerate(known)}
    asking = {query: place for place, query in enumerate(piece.queries)}
    batches = list(rows.padded([*(encoded for _, encoded in known), *(queries[query] for query in piece.queries)]))
    names = [*(f"row {row} of the index" for row, _ in known), *(f"query {query}" for query in piece.queries)]
    try:
        result = exact_gram(
            rows.model, rows.parameters, batches, row_names=names, reduction=rows.settings.loss.name,
            memory_bytes=memory_bytes, preconditioner=preconditioner, queries=range(len(known), len(names)),
            on_batch=lambda done, total, _: report(done / total),
        )  # fmt: skip
    except ArithmeticError as error:
        mend = "Pass --model-dtype float32 to rapidun index build, or mend the row or the model"
        raise ModelError(f"{error}. {mend}".replace("influence: ", "index: ", 1)) from error
    scores = influence_scores(result.gram, score=score, norms=result.norms, query_norms=result.query_norms)
    return [
        (query, row, float(scores[places[row], asking[query]]) if row in places else 0.0)
        for query, row in sorted(asked)
    ]


def _kept(path: Path, name: str, tell: Callable[[str], None]) -> list[tuple[int, int, float]] | None:
    """What an earlier run found for a piece; None where there is nothing, or nothing whole."""
    if not path.is_file():
        return None
    try:
        kept: Any = read_json(path)
    except ArtifactError:
        kept = None
    if not isinstance(kept, dict) or CHECK not in kept or not fits_its_seal(kept) or kept["piece"] != name:
        tell(f"{path}: a damaged file; its rows are scored again")
        return None
    return [(query, row, value) for query, row, value in kept["scores"]]


def _dtype(rows: GradientRows) -> torch.dtype:
    return next(p.dtype for p in rows.model.parameters() if p.dtype.is_floating_point)
