"""Scores of every row of an index for some queries, streamed: products of whole blocks, and the best of each query.

int8 rows are multiplied as integers. A query is q = s (256 h + l) with two int8 vectors, exact to 2^-15 of its largest
number; their products with a row are summed in int32 without any rounding. Where l holds no more of the query than
rounding took from each row, it is left out, and with it half of the work. float16 rows are widened and multiplied in
float32. A cosine is the product of a query of length 1 with a row over its stored norm, which is that before rounding.
"""

import platform
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapidun.base.errors import ConfigError
from rapidun.config.index import IndexDtype
from rapidun.config.influence import Score
from rapidun.stages.influence.index.format import INT8_MAX, NUMPY
from rapidun.stages.influence.index.reader import Block, Index, Span, in_order

# largest number of the two-part queries, 127 * 256 + 127
SPLIT_MAX = 32639
# share of a query's squared norm that may be rounded away: a row of normal numbers loses 1e-4
MAX_LOST = 2e-4
# columns whose int8 products, at most 128 * 127 each, still fit into int32
SPLIT_COLUMNS = 1 << 17
# rows that are widened to float32 at once: small enough for a cache
TILE_ROWS = 256
MIN_BLOCK_ROWS = 64
# bytes of rows that one thread works on at once: what a core's share of the cache holds, read from memory only once
BLOCK_NBYTES = 1 << 23


class ScoreBlock(NamedTuple):
    """Scores of consecutive rows."""

    first_row: int
    scores: Tensor  # [n, Q] float32, row i for query j; positive = helpful


class Queries(NamedTuple):
    """Queries ready to be multiplied with stored rows."""

    vectors: Tensor  # [Q, K] float32
    parts: Tensor  # [Q + L, K] int8: high parts of all, low parts of those that need them
    with_low: Tensor  # [L] int64: queries that have a low part
    scales: Tensor  # [Q] float32: vectors = scales * (256 high + low), almost


def prepare_queries(vectors: Tensor, score: Score = Score.dot) -> Queries:
    """Round queries to int8, or split them into two int8 parts where that would lose more than MAX_LOST.

    Args:
        vectors: [Q, K] float; for cosines brought to length 1 (one of zeros stays).
    Raises: ArithmeticError for numbers that are not finite (names the first query).
    """
    vectors = vectors.float().contiguous()
    norms = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    bad = (~torch.isfinite(norms)).nonzero().flatten().tolist()
    if bad:
        raise ArithmeticError(f"need finite queries, got a norm of {norms[bad[0]].item()} for query {bad[0]}")
    if score is Score.cosine:
        vectors = (vectors.double() / torch.where(norms > 0, norms, 1)[:, None]).float()
        norms = (norms > 0).double()
    largest = vectors.abs().amax(dim=1).clamp(min=SPLIT_MAX * torch.finfo(torch.float32).tiny)
    scales = largest / (INT8_MAX * 256)
    high = torch.round(vectors / (256 * scales)[:, None])
    lost = (vectors - high * (256 * scales)[:, None]).norm(dim=1) > MAX_LOST**0.5 * norms
    with_low = lost.nonzero().flatten()
    scales[with_low] = largest[with_low] / SPLIT_MAX
    whole = torch.round(vectors[with_low] / scales[with_low, None]).to(torch.int32)
    # so that the rest lies in [-128, 127]
    high[with_low] = torch.div(whole + 128, 256, rounding_mode="floor").float()
    low = whole - 256 * high[with_low].to(torch.int32)
    return Queries(vectors, torch.cat([high, low]).to(torch.int8), with_low, scales)


def has_integer_products() -> bool:
    """Whether int8 matrices are multiplied faster than float32 ones here: oneDNN on x86."""
    return torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def products(rows: Tensor, scales: Tensor, queries: Queries, *, integer: bool, scratch: Tensor | None = None) -> Tensor:
    """<z_i, q_j>: [n, K] stored rows, [n] scales -> [n, Q] float32.

    Args:
        scratch: [n or more, Q + L] int32 for the integer products, used again and again: fresh memory for every block
            costs as much as half the products.
    """
    num_queries, k = len(queries.vectors), rows.shape[1]
    out = torch.empty(len(rows), num_queries, dtype=torch.float32)
    # oneDNN leaves products over a single column unwritten
    if integer and rows.dtype == torch.int8 and k % SPLIT_COLUMNS != 1:
        if scratch is None:
            scratch = torch.empty(len(rows), len(queries.parts), dtype=torch.int32)
        whole = scratch[: len(rows)]
        high, low = whole[:, :num_queries], whole[:, num_queries:]
        for left in range(0, k, SPLIT_COLUMNS):
            columns = slice(left, left + SPLIT_COLUMNS)
            # one product for all parts of the queries
            torch._int_mm(rows[:, columns], queries.parts[:, columns].T, out=whole)
            if left == 0:
                torch.mul(high, 256.0, out=out)
            else:
                out.add_(high, alpha=256)
            if len(queries.with_low):
                out.index_add_(1, queries.with_low, low.float())
        return out.mul_(queries.scales).mul_(scales[:, None])
    for start in range(0, len(rows), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        torch.mm(rows[tile].float(), queries.vectors.T, out=out[tile])
    return out.mul_(scales[:, None])


def stream_scores(
    index: Index,
    vectors: Tensor,
    *,
    score: Score,
    memory_bytes: float,
    keep_cached: bool = True,
    integer: bool | None = None,
    threads: int | None = None,
) -> Iterator[ScoreBlock]:
    """Scores of all rows for all queries, block after block in the order of the rows.

    Each thread reads, checks and multiplies blocks of its own: while one waits for the disk, another multiplies.

    Args:
        vectors: [Q, K] the queries' numbers, made by the same sketch as the rows (a preconditioner may have changed
            the gradients before).
        memory_bytes: for the queries, and every thread's block with all that is worked out of it.
        keep_cached: False drops what was read from the system's file cache.
        integer: multiply int8 rows as integers; None: where that is faster.
        threads: None: as many as torch uses.
    Raises: ConfigError if the memory does not do, or the queries have another K; ArithmeticError for queries that are
        not finite; ArtifactError for a damaged index.
    """
    if vectors.dim() != 2 or vectors.shape[1] != index.k:
        raise ConfigError(f"index: need queries of {index.k} numbers, got {list(vectors.shape)}")
    threads_before = torch.get_num_threads()
    threads = threads or threads_before
    integer = has_integer_products() if integer is None else integer
    max_rows = block_rows(
        memory_bytes,
        k=index.k,
        num_queries=len(vectors),
        dtype=index.manifest.dtype,
        most=index.manifest.shard_rows,
        threads=threads,
    )
    queries = prepare_queries(vectors, score)

    local = threading.local()

    def start_thread() -> None:
        # each of our threads multiplies alone: torch's own would wait for each other at every product
        torch.set_num_threads(1)
        local.scratch = torch.empty(max_rows, len(queries.parts), dtype=torch.int32)

    def work(span: Span) -> ScoreBlock:
        found = index.read(span)
        scores = _block_scores(found.block, queries, score=score, integer=integer, scratch=local.scratch)
        found.let_go(keep_cached=keep_cached)
        return ScoreBlock(found.block.first_row, scores)

    try:
        yield from in_order(work, index.spans(max_rows), threads=threads, start_thread=start_thread)
    finally:
        torch.set_num_threads(threads_before)


def _block_scores(block: Block, queries: Queries, *, score: Score, integer: bool, scratch: Tensor) -> Tensor:
    scales = torch.from_numpy(block.scales.copy())
    rows = torch.from_numpy(block.rows)
    if score is Score.dot:
        return products(rows, scales, queries, integer=integer, scratch=scratch)
    norms = torch.from_numpy(block.norms.copy()).double()
    # over the norm before anything is multiplied: products of very small or large numbers leave float32
    units = torch.where(norms > 0, scales.double() / norms, 0.0).float()
    return products(rows, units, queries, integer=integer, scratch=scratch).clamp_(-1.0, 1.0)


def block_rows(memory_bytes: float, *, k: int, num_queries: int, dtype: IndexDtype, most: int, threads: int = 1) -> int:
    """Rows of a block such that all threads' blocks fit into the memory beside the queries.

    Raises: ConfigError if not even blocks of MIN_BLOCK_ROWS (or of all rows) do.
    """
    row_nbytes = k * NUMPY[dtype].itemsize
    # the query vectors in float32 and in two int8 parts, twice while they are made; a tile in float32
    fixed = num_queries * k * 14 + threads * TILE_ROWS * k * 4
    # stored rows, which the product may copy; products of both parts in int32 and float32; scores that wait
    a_row = threads * (2 * row_nbytes + num_queries * 28)
    rows = int((memory_bytes - fixed) // a_row)
    least = min(MIN_BLOCK_ROWS, most)
    if rows < least:
        need = (fixed + least * a_row) / 1e9
        raise ConfigError(
            f"index: need at least {need:.3f} GB for {num_queries} queries of {k} numbers, got "
            f"{memory_bytes / 1e9:.3f}. Raise --memory-gb or pass fewer queries at once"
        )
    return min(rows, most, max(least, BLOCK_NBYTES // row_nbytes))


class TopRows:
    """The k best rows of each query among those seen so far; of equal scores the earlier row is better."""

    def __init__(self, num_queries: int, k: int) -> None:
        self.k = k
        self._scores = np.full((num_queries, k), -np.inf, dtype=np.float32)
        self._rows = np.full((num_queries, k), -1, dtype=np.int64)
        # rows that were better than the k-th when they came: (queries, rows, scores), merged when they are many
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._num_waiting = 0

    def add(self, block: ScoreBlock) -> None:
        """Blocks come in the order of their rows: what only equals the k-th best comes later and loses."""
        better = block.scores > torch.from_numpy(self._scores[:, -1])
        # numpy finds a few among many several times faster than torch
        found = np.flatnonzero(better.numpy())
        if len(block.scores) > self.k and len(found) > self._scores.size:
            # at the beginning: no row counts that k others of its own block are better than
            better &= block.scores >= torch.topk(block.scores, self.k, dim=0).values[-1]
            found = np.flatnonzero(better.numpy())
        if not len(found):
            return
        places, queries = np.divmod(found, len(self._scores))
        self._waiting.append((queries, places + block.first_row, block.scores.numpy()[places, queries]))
        self._num_waiting += len(places)
        # a fuller list costs more to sort, an old threshold lets more rows through
        if self._num_waiting >= self._scores.size:
            self._merge()

    def watch(self, blocks: Iterable[ScoreBlock]) -> Iterator[ScoreBlock]:
        """The same blocks, each added on its way."""
        for block in blocks:
            self.add(block)
            yield block

    def result(self, query: int) -> list[tuple[int, float]]:
        """(row, score), the best first; fewer than k where there are not so many rows."""
        self._merge()
        return [
            (int(row), float(score))
            for row, score in zip(self._rows[query], self._scores[query], strict=True)
            if row >= 0
        ]

    def results(self) -> list[list[tuple[int, float]]]:
        """`result` of every query."""
        return [self.result(query) for query in range(len(self._scores))]

    def _merge(self) -> None:
        if not self._waiting:
            return
        num_queries = len(self._scores)
        kept = (np.repeat(np.arange(num_queries), self.k), self._rows.ravel(), self._scores.ravel())
        queries, rows, scores = (np.concatenate(parts) for parts in zip(kept, *self._waiting, strict=True))
        self._waiting, self._num_waiting = [], 0
        # empty places (row -1) have a score below all others
        order = np.lexsort((rows, -scores, queries))
        counts = np.bincount(queries, minlength=num_queries)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        best = order[np.arange(len(order)) - starts < self.k]
        self._rows, self._scores = rows[best].reshape(-1, self.k), scores[best].reshape(-1, self.k)


def top_queries(scores: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m best queries of each row: [n, Q] -> (scores [n, m] float32, queries [n, m] int32), the best first."""
    best = torch.topk(scores, min(m, scores.shape[1]), dim=1)
    return best.values, best.indices.to(torch.int32)
