"""What scoring writes: a matrix, the best rows of each query, the best queries of each row; streamed and atomic."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

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


def write_top(
    blocks: Iterable[ScoreBlock], index: Index, query_ids: Sequence[str], out: Path, *, k: int, per_row: int = 0
) -> TopRows:
    """Write the best rows of each query, and with per_row >= 1 the best queries of each row, in one pass.

    top.jsonl:          {"query", "train": [ids], "rows": [numbers], "scores": [...]}, the best first
    row_scores.npy:     [num_rows, per_row] float32, the best first
    row_queries.npy:    [num_rows, per_row] int32, columns of query_ids.json
    """
    best = TopRows(len(query_ids), min(k, index.num_rows))
    m = min(per_row, len(query_ids))

    def watched() -> Iterator[ScoreBlock]:
        for block in blocks:
            best.add(block)
            yield block

    def write_scores_part(scores_part: Path) -> None:
        def write_queries_part(queries_part: Path) -> None:
            with scores_part.open("wb") as scores_file, queries_part.open("wb") as queries_file:
                write_npy_header(scores_file, (index.num_rows, m), "<f4")
                write_npy_header(queries_file, (index.num_rows, m), "<i4")
                for block in watched():
                    scores, queries = top_queries(block.scores, m)
                    scores_file.write(_bytes(scores))
                    queries_file.write(_bytes(queries))

        write_atomic(out / "row_queries.npy", write_queries_part)

    with refusing(into=out):
        if m:
            write_atomic(out / "row_scores.npy", write_scores_part)
        else:
            for _ in watched():
                pass
        write_json(out / "query_ids.json", list(query_ids))
        write_jsonl(out / "top.jsonl", _top_lines(best, index, query_ids))
    return best


def _top_lines(best: TopRows, index: Index, query_ids: Sequence[str]) -> Iterator[dict[str, object]]:
    found = [best.result(query) for query in range(len(query_ids))]
    ids = index.ids_of({row for pairs in found for row, _ in pairs})
    for query, pairs in zip(query_ids, found, strict=True):
        yield {
            "query": query,
            "train": [ids[row] for row, _ in pairs],
            "rows": [row for row, _ in pairs],
            "scores": [score for _, score in pairs],
        }


def write_npy_header(file: IO[bytes], shape: tuple[int, int], dtype: str) -> None:
    """The head of a .npy file whose numbers follow row by row."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})


def _bytes(numbers: Tensor) -> memoryview:
    return numbers.contiguous().numpy().reshape(-1).view(np.uint8).data
