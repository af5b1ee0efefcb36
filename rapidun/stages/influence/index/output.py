"""What scoring writes: a matrix, the best rows of each query, the best queries of each row; streamed and atomic."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from torch import Tensor

from rapidun.base.files import write_atomic, write_json, write_jsonl
from rapidun.base.limits import refusing
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.index.score import ScoreBlock, TopRows, top_queries


def write_scores(blocks: Iterable[ScoreBlock], index: Index, query_ids: Sequence[str], out: Path) -> None:
    """Write all scores.

    scores.npy:      [num_rows, num_queries] float32; np.load(..., mmap_mode="r") maps it
    query_ids.json:  the ids of its columns
    train_ids.jsonl: the ids of its rows, a JSON string a line
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:
            write_npy_header(file, (index.num_rows, len(query_ids)), "<f4")
            for block in blocks:
                file.write(_bytes(block.scores))

    with refusing(into=out):
        write_atomic(out / "scores.npy", write)
        write_json(out / "query_ids.json", list(query_ids))
        write_jsonl(out / "train_ids.jsonl", index.all_ids())


class Ranked(NamedTuple):
    """A row of the index among the best of a query."""

    row: int
    score: float
    # where some were scored again (rerank.py): by the sketch, and whether `score` is of the gradients themselves
    sketched: float | None = None
    is_exact: bool = False


# of every query (row, score), the best first -> those rows in the order that counts
Rerank = Callable[[list[list[tuple[int, float]]]], list[list[Ranked]]]


def write_top(
    blocks: Iterable[ScoreBlock],
    index: Index,
    query_ids: Sequence[str],
    out: Path,
    *,
    k: int,
    per_row: int = 0,
    rerank: Rerank | None = None,
    num_reranked: int = 0,
) -> list[list[Ranked]]:
    """Write the best rows of each query, and with per_row >= 1 the best queries of each row, in one pass.

    top.jsonl:          {"query", "train": [ids], "rows": [numbers], "scores": [...]}, the best first; with `rerank`
                        also "sketched" and "exact" of each row
    row_scores.npy:     [num_rows, per_row] float32, the best first
    row_queries.npy:    [num_rows, per_row] int32, columns of query_ids.json

    Args: rerank: scores the `num_reranked` best again, of which k may be fewer.
    """
    best = TopRows(len(query_ids), min(max(k, num_reranked), index.num_rows))
    m = min(per_row, len(query_ids))

    def write_scores_part(scores_part: Path) -> None:
        def write_queries_part(queries_part: Path) -> None:
            with scores_part.open("wb") as scores_file, queries_part.open("wb") as queries_file:
                write_npy_header(scores_file, (index.num_rows, m), "<f4")
                write_npy_header(queries_file, (index.num_rows, m), "<i4")
                for block in best.watch(blocks):
                    scores, queries = top_queries(block.scores, m)
                    scores_file.write(_bytes(scores))
                    queries_file.write(_bytes(queries))

        write_atomic(out / "row_queries.npy", write_queries_part)

    with refusing(into=out):
        if m:
            write_atomic(out / "row_scores.npy", write_scores_part)
        else:
            for _ in best.watch(blocks):
                pass
        write_json(out / "query_ids.json", list(query_ids))
    found = best.results()
    ranked = rerank(found) if rerank else [[Ranked(row, score) for row, score in pairs] for pairs in found]
    ranked = [rows[:k] for rows in ranked]
    write_ranked(ranked, index, query_ids, out / "top.jsonl")
    return ranked


def write_ranked(ranked: Sequence[Sequence[Ranked]], index: Index, query_ids: Sequence[str], path: Path) -> None:
    """A line for each query, as top.jsonl."""
    with refusing(into=path.parent):
        write_jsonl(path, _lines(ranked, index, query_ids))


def _lines(ranked: Sequence[Sequence[Ranked]], index: Index, query_ids: Sequence[str]) -> Iterator[dict[str, object]]:
    ids = index.ids_of({found.row for rows in ranked for found in rows})
    for query, rows in zip(query_ids, ranked, strict=True):
        line: dict[str, object] = {
            "query": query,
            "train": [ids[found.row] for found in rows],
            "rows": [found.row for found in rows],
            "scores": [found.score for found in rows],
        }
        if any(found.sketched is not None for found in rows):
            line |= {
                "sketched": [found.sketched for found in rows],
                "exact": [found.is_exact for found in rows],
            }
        yield line


def write_npy_header(file: IO[bytes], shape: tuple[int, int], dtype: str) -> None:
    """The head of a .npy file whose numbers follow row by row."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})


def _bytes(numbers: Tensor) -> memoryview:
    return numbers.contiguous().numpy().reshape(-1).view(np.uint8).data
