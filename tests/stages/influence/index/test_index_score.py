"""Streamed scores against the plain product in float64, and the best rows against a full sort."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rapidun.base.errors import ArtifactError, ConfigError
from rapidun.config.index import IndexDtype
from rapidun.config.influence import Score
from rapidun.stages.influence.index import score
from rapidun.stages.influence.index.output import write_scores, write_top
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.index.score import (
    ScoreBlock,
    TopRows,
    block_rows,
    prepare_queries,
    products,
    stream_scores,
)
from rapidun.stages.influence.index.writer import Vectors, build_shards

_spec = importlib.util.spec_from_file_location("index_rows", Path(__file__).parent / "index_rows.py")
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

K, ROWS, QUERIES = 64, 50, 7


@pytest.fixture(scope="module", params=list(IndexDtype), ids=lambda dtype: dtype.name)
def index(request, tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("scores") / request.param.name
    made.build_synthetic(folder, num_rows=ROWS, k=K, shard_rows=16, dtype=request.param.name)
    return Index(folder)


@pytest.fixture(scope="module")
def queries() -> torch.Tensor:
    """The first resembles row 3; the sizes are far apart; the last is zero."""
    vectors = np.random.default_rng(5).standard_normal((QUERIES, K)) * 10.0 ** np.arange(-3, 4)[:, None]
    vectors[0] += made.row_vectors(3, 4, k=K)[0] * 1e-3
    vectors[-1] = 0
    return torch.from_numpy(vectors).float()


def _stored(index: Index) -> torch.Tensor:
    """[N, K] float64: what the stored rows stand for."""
    blocks = index.blocks(max_rows=1000)
    return torch.cat([torch.from_numpy(b.rows.astype(np.float64) * b.scales[:, None]) for b in blocks])


def _rounded(queries: torch.Tensor) -> torch.Tensor:
    """[Q, K] float64: what the queries' int8 parts stand for."""
    found = prepare_queries(queries)
    whole = 256.0 * found.parts[: len(queries)].double()
    whole[found.with_low] += found.parts[len(queries) :].double()
    return whole * found.scales.double()[:, None]


def _norms() -> torch.Tensor:
    return torch.from_numpy(np.linalg.norm(made.row_vectors(0, ROWS, k=K).astype(np.float64), axis=1))


def _scores(index, queries, **options) -> torch.Tensor:
    settings = {"score": Score.cosine, "memory_bytes": 1e8, **options}
    blocks = list(stream_scores(index, queries, **settings))
    assert [b.first_row for b in blocks] == list(np.cumsum([0, *(len(b.scores) for b in blocks[:-1])]))
    return torch.cat([b.scores for b in blocks])


@pytest.mark.parametrize("integer", [True, False])
def test_scores_equal_the_plain_product(index, queries, integer):
    is_int8 = index.manifest.dtype is IndexDtype.int8
    # int8 rows meet rounded queries
    taken = _rounded(queries) if integer and is_int8 else queries.double()
    dots = _stored(index) @ taken.T
    scale = torch.outer(_norms(), queries.double().norm(dim=1))
    found = _scores(index, queries, score=Score.dot, integer=integer).double()
    assert ((found - dots).abs() <= 2e-5 * scale).all()
    cosines = torch.where(scale > 0, dots / scale, 0.0)
    found = _scores(index, queries, integer=integer).double()
    assert (found - cosines).abs().max() < 2e-5
    assert (found[:, -1] == 0).all()


def test_scores_are_near_those_of_the_rows_before_rounding(index, queries):
    truth = torch.from_numpy(made.row_vectors(0, ROWS, k=K)).double() @ queries.double().T
    scale = torch.outer(_norms(), queries.double().norm(dim=1)).clamp(min=1e-30)
    assert (_scores(index, queries).double() - truth / scale).abs().max() < 4e-3


def test_blocks_and_memory_do_not_matter(index, queries):
    whole = _scores(index, queries)
    for threads in (1, 2, 5):
        for keep_cached in (True, False):
            found = _scores(index, queries, threads=threads, keep_cached=keep_cached)
            torch.testing.assert_close(found, whole, rtol=0, atol=0)
    assert torch.get_num_threads() == 1


def test_blocks_shrink_to_the_memory():
    """10 queries of 1,024 numbers: 10 * 1024 * 14 bytes, a tile of 256 * 1024 * 4, and 2 * 1024 + 280 bytes a row."""
    fixed = 143_360 + 1_048_576
    shape = {"k": 1024, "num_queries": 10, "dtype": IndexDtype.int8, "most": 5000}
    assert block_rows(fixed + 2328 * 100, **shape) == 100
    assert block_rows(fixed + 2328 * 100 + 2327, **shape) == 100
    # two threads have a tile and a block each
    assert block_rows(fixed + 1_048_576 + 2328 * 200, **shape, threads=2) == 100
    assert block_rows(1e9, **shape) == 5000
    with pytest.raises(ConfigError):
        block_rows(fixed + 2328 * 63, **shape)


def test_small_blocks_give_the_same_scores(index, queries, monkeypatch):
    whole = _scores(index, queries)
    for rows in (5, 7):
        monkeypatch.setattr(score, "MIN_BLOCK_ROWS", rows)
        monkeypatch.setattr(score, "BLOCK_NBYTES", 1)
        found = _scores(index, queries)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)


def test_too_little_memory_says_how_much(index, queries):
    with pytest.raises(ConfigError, match=r"need at least 0.0\d+ GB for 7 queries of 64 numbers, got 0.000. Raise"):
        next(stream_scores(index, queries, score=Score.dot, memory_bytes=1000))


def test_queries_of_another_length_are_refused(index):
    with pytest.raises(ConfigError, match=r"need queries of 64 numbers, got \[2, 63\]"):
        next(stream_scores(index, torch.zeros(2, 63), score=Score.dot, memory_bytes=1e8))


def test_queries_are_rounded_to_eight_bits_where_that_loses_little(queries):
    found = prepare_queries(queries)
    assert found.with_low.tolist() == []
    lost = (_rounded(queries) - queries).norm(dim=1) / queries.norm(dim=1).clamp(min=1e-30)
    # normal numbers lose about a hundredth, less than the square root of 2e-4
    assert (lost < 0.0142).all() and (lost[:-1] > 0.004).all()
    assert found.parts.abs().max() == 127


def test_queries_with_outliers_are_split_to_fifteen_bits(queries):
    """One number as large as the others together: eight bits would leave little of these."""
    queries = queries.clone()
    queries[2, 5] = 30 * queries[2].norm()
    queries[4, 7] = -30 * queries[4].norm()
    found = prepare_queries(queries)
    assert found.with_low.tolist() == [2, 4]
    error = (_rounded(queries) - queries.double()).abs().amax(dim=1)
    assert (error <= 0.51 * queries.double().abs().amax(dim=1) / 32639 + 1e-37)[found.with_low].all()


@pytest.mark.parametrize("integer", [True, False])
def test_outliers_do_not_hide_the_rest_of_a_query(index, queries, integer):
    queries = queries.clone()
    queries[2, 5] = 30 * queries[2].norm()
    scale = torch.outer(_norms(), queries.double().norm(dim=1)).clamp(min=1e-30)
    truth = _stored(index) @ queries.double().T / scale
    found = _scores(index, queries, integer=integer).double()
    assert (found[:, 2] - truth[:, 2]).abs().max() < 2e-5


def test_queries_that_are_not_finite_are_refused():
    with pytest.raises(ArithmeticError, match="query 1"):
        prepare_queries(torch.tensor([[1.0], [float("nan")]]))


def test_integer_products_do_not_overflow():
    """The largest numbers there are, over more columns than int32 can add up at once: 127 * 32639 * 2^18."""
    k = 1 << 18
    rows = torch.full((2, k), 127, dtype=torch.int8)
    queries = prepare_queries(torch.ones(1, k))
    found = products(rows, torch.ones(2), queries, integer=True)
    assert found[0, 0].item() == pytest.approx(127 * k, rel=1e-6)
    ones = torch.ones(1, k)
    ones[0, 0] = 1000
    queries = prepare_queries(ones)
    assert queries.with_low.tolist() == [0]
    found = products(rows, torch.ones(2), queries, integer=True)
    assert found[0, 0].item() == pytest.approx(127 * (k + 999), rel=0.02)


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("size", [1e-35, 1e-20, 1e18])
def test_cosines_of_very_small_and_large_numbers(tmp_path, size, integer):
    """Their products leave float32; a cosine does not."""
    vectors = np.random.default_rng(0).standard_normal((9, 256)).astype(np.float32)

    def rows(first: int, stop: int) -> Vectors:
        return Vectors(
            [str(row) for row in range(first, stop)], vectors[first:stop] * np.float32(size), np.zeros(stop - first)
        )

    build_shards(made.synthetic(tmp_path / "sizes", num_rows=9, k=256, shard_rows=9), rows)
    queries = torch.from_numpy(vectors[:3]) * size
    found = torch.cat(
        [
            b.scores
            for b in stream_scores(
                Index(tmp_path / "sizes"), queries, score=Score.cosine, memory_bytes=1e8, integer=integer
            )
        ]
    )
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), unit @ unit[:3].T, atol=3e-3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_very_narrow_rows(tmp_path, k):
    made.build_synthetic(tmp_path / "narrow", num_rows=20, k=k, shard_rows=20)
    index = Index(tmp_path / "narrow")
    queries = torch.from_numpy(made.row_vectors(30, 34, k=k))
    found = torch.cat(
        [b.scores for b in stream_scores(index, queries, score=Score.dot, memory_bytes=1e8, integer=True)]
    )
    torch.testing.assert_close(found.double(), _stored(index) @ queries.double().T, rtol=0.02, atol=0.02)


def test_a_damaged_row_stops_the_scores(tmp_path, queries):
    made.build_synthetic(tmp_path / "index", num_rows=ROWS, k=K, shard_rows=16)
    path = tmp_path / "index" / "shard-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[4096 + 5 * K + 3] ^= 1
    path.write_bytes(data)
    index = Index(tmp_path / "index")
    with pytest.raises(ArtifactError, match=r"shard-00002.safetensors: .* damaged ones in row 5 of the shard"):
        write_scores(
            stream_scores(index, queries, score=Score.dot, memory_bytes=1e8), index, list("abcdefg"), tmp_path / "out"
        )
    assert list((tmp_path / "out").iterdir()) == []


def _top(scores: torch.Tensor, k: int, cuts: list[int]) -> list[list[tuple[int, float]]]:
    best = TopRows(scores.shape[1], k)
    first = 0
    for part in torch.tensor_split(scores, cuts):
        best.add(ScoreBlock(first, part))
        first += len(part)
    return [best.result(query) for query in range(scores.shape[1])]


@pytest.mark.parametrize("cuts", [[], [1, 2, 3], [10, 30], [49]])
@pytest.mark.parametrize("k", [1, 5, 50, 60])
def test_the_best_rows_equal_a_full_sort(cuts, k):
    scores = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    # many ties: the earlier row is better
    scores[:, 1] = scores[:, 1].round()
    scores[:, 2] = 0.5
    for query, found in enumerate(_top(scores, k, cuts)):
        order = sorted(range(50), key=lambda row: (-scores[row, query].item(), row))[:k]
        assert [row for row, _ in found] == order
        assert [score for _, score in found] == [scores[row, query].item() for row in order]


MEMORY = """
import sys
from pathlib import Path
import torch
from rapidun.config.influence import Score
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.index.score import TopRows, stream_scores

torch.set_num_threads(1)
best = TopRows(8, 5)
peaks = []
for folder in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")
    index = Index(Path(folder))
    queries = torch.randn(8, index.k, generator=torch.Generator().manual_seed(0))
    for block in stream_scores(index, queries, score=Score.cosine, memory_bytes=6e7, threads=2):
        best.add(block)
    status = Path("/proc/self/status").read_text()
    peaks.append(int(status.partition("VmHWM:")[2].split()[0]))
print(*peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_index(tmp_path):
    """41 MB of rows, and 164 MB: twice and a half of what is allowed would stay mapped, were nothing let go of."""
    for name, num_rows in (("small", 40_000), ("large", 160_000)):
        manifest = made.synthetic(tmp_path / name, num_rows=num_rows, k=1024, shard_rows=40_000)

        def rows(first, stop):
            vectors = np.random.default_rng(first).standard_normal((stop - first, 1024), dtype=np.float32)
            return Vectors([str(row) for row in range(first, stop)], vectors, np.zeros(stop - first))

        build_shards(manifest, rows)
    # the small one twice: what is allocated once counts for none of them
    folders = [str(tmp_path / name) for name in ("small", "small", "large")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *folders], capture_output=True, text=True, check=True)
    _, small, large = (int(kilobytes) for kilobytes in done.stdout.split())
    # kB; the peak moves by a block or two with how the threads happen to overlap
    assert large - small < 30_000


def test_files_of_scores(index, queries, tmp_path):
    ids = [f"q{query}" for query in range(QUERIES)]
    truth = _scores(index, queries)
    settings = {"score": Score.cosine, "memory_bytes": 1e8}
    write_scores(stream_scores(index, queries, **settings), index, ids, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy", mmap_mode="r"), truth.numpy())
    assert (tmp_path / "train_ids.jsonl").read_text().splitlines() == [f'"row{row}"' for row in range(ROWS)]
    write_top(stream_scores(index, queries, **settings), index, ids, tmp_path, k=3, per_row=2)
    lines = [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == ids
    for query, line in enumerate(lines):
        order = sorted(range(ROWS), key=lambda row: (-truth[row, query].item(), row))[:3]
        assert line["rows"] == order
        assert line["train"] == [f"row{row}" for row in order]
        assert line["scores"] == pytest.approx(truth[order, query].tolist())
    assert lines[0]["rows"][0] == 3
    best = truth.topk(2, dim=1)
    np.testing.assert_array_equal(np.load(tmp_path / "row_scores.npy"), best.values.numpy())
    found = torch.from_numpy(np.load(tmp_path / "row_queries.npy")).long()
    assert found.shape == (ROWS, 2)
    torch.testing.assert_close(truth.gather(1, found), best.values)
    assert not list(tmp_path.glob("*.part"))
