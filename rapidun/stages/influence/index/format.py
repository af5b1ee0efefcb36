"""How rows of numbers lie in a shard: int8 or fp16 with a scale each, norms, losses and checksums, in one file.

A shard is a safetensors file that any reader of the format opens. Its header is padded so that `rows` begins on a page:

    rows   [n, K] int8 or float16    z_i = scales_i * rows_i
    sums   [n] uint64                the words of each stored row added up modulo 2^64
    scales [n] float32               int8: max |z_i| / 127; float16: a power of two
    norms  [n] float32               |z_i| before rounding
    losses [n] float32               nats per token, or nats

The sums let a reader notice a damaged row while it streams: one changed byte always changes its row's sum.
"""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rapidun.config.index import IndexDtype

FORMAT_VERSION = 1
# rows begin at a multiple of this, so that they can be mapped and let go of page by page
PAGE = 4096
INT8_MAX = 127
TINY = np.finfo(np.float32).tiny


NUMPY: dict[IndexDtype, np.dtype[Any]] = {IndexDtype.int8: np.dtype("<i1"), IndexDtype.fp16: np.dtype("<f2")}
SAFETENSORS = {IndexDtype.int8: "I8", IndexDtype.fp16: "F16"}
# name -> type of the arrays behind the rows, in the file's order
SMALL: dict[str, np.dtype[Any]] = {
    "sums": np.dtype("<u8"),
    "scales": np.dtype("<f4"),
    "norms": np.dtype("<f4"),
    "losses": np.dtype("<f4"),
}
SMALL_SAFETENSORS = {"sums": "U64", "scales": "F32", "norms": "F32", "losses": "F32"}


class Stored(NamedTuple):
    """Rows as they are stored."""

    rows: np.ndarray  # [n, K] int8 or float16
    sums: np.ndarray  # [n] uint64
    scales: np.ndarray  # [n] float32
    norms: np.ndarray  # [n] float32
    losses: np.ndarray  # [n] float32


def quantise(vectors: np.ndarray, losses: np.ndarray, *, dtype: IndexDtype) -> Stored:
    """Round rows to int8 or float16 with a scale each.

    int8: q = round(z / s), s = max |z| / 127; the error of a number is uniform on +-s/2, about 1e-4 of the row's
    squared norm in all. float16: s is a power of two with max |z| / s in [0.5, 1), so that scaling costs nothing.
    A row of zeros has scale 0.

    Args:
        vectors: [n, K] float32. losses: [n].
    Raises: ArithmeticError for a number that is not finite (names its row).
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise ArithmeticError(f"need finite numbers, got a norm of {norms[bad[0]]} in row {bad[0]}")
    largest = np.abs(vectors).max(axis=1)
    if dtype is IndexDtype.int8:
        scales = np.maximum(largest / np.float32(INT8_MAX), TINY)
    else:
        scales = np.ldexp(np.float32(1), np.maximum(np.frexp(largest)[1], -126)).astype(np.float32)
    scales[largest == 0] = 0
    scaled = vectors / np.where(scales > 0, scales, 1)[:, None]
    rows = np.rint(scaled).astype(NUMPY[dtype]) if dtype is IndexDtype.int8 else scaled.astype(NUMPY[dtype])
    return Stored(rows, row_sums(rows), scales, norms.astype(np.float32), np.asarray(losses, dtype=np.float32))


def row_sums(rows: np.ndarray) -> np.ndarray:
    """[n] uint64: the bytes of each row, eight at a time where they come to eights, added up modulo 2^64."""
    flat = rows.view(np.uint8).reshape(len(rows), -1)
    words = flat.view("<u8") if flat.shape[1] % 8 == 0 else flat
    return words.sum(axis=1, dtype=np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything lies in a shard of `num_rows` rows of `k` numbers."""

    num_rows: int
    k: int
    dtype: IndexDtype

    @property
    def row_nbytes(self) -> int:
        return self.k * NUMPY[self.dtype].itemsize

    @property
    def rows_nbytes(self) -> int:
        return self.num_rows * self.row_nbytes

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return PAGE + self.rows_nbytes + sum(self.num_rows * kind.itemsize for kind in SMALL.values())

    def small_offset(self, name: str) -> int:
        """Byte in the file at which one of the small arrays begins."""
        before = list(SMALL)[: list(SMALL).index(name)]
        return PAGE + self.rows_nbytes + sum(self.num_rows * SMALL[other].itemsize for other in before)

    def header(self) -> bytes:
        """The file's first PAGE bytes."""
        tensors: dict[str, object] = {
            "rows": {
                "dtype": SAFETENSORS[self.dtype],
                "shape": [self.num_rows, self.k],
                "data_offsets": [0, self.rows_nbytes],
            }
        }
        for name, kind in SMALL.items():
            start = self.small_offset(name) - PAGE
            tensors[name] = {
                "dtype": SMALL_SAFETENSORS[name],
                "shape": [self.num_rows],
                "data_offsets": [start, start + self.num_rows * kind.itemsize],
            }
        length = PAGE - 8
        return length.to_bytes(8, "little") + json.dumps(tensors, separators=(",", ":")).encode().ljust(length)


def small_bytes(stored: Stored) -> bytes:
    """Everything behind the rows."""
    return b"".join(getattr(stored, name).astype(kind).tobytes() for name, kind in SMALL.items())


def read_small(data: bytes, layout: Layout) -> dict[str, np.ndarray]:
    """The small arrays, from the bytes behind the rows."""
    base = layout.small_offset("sums")
    return {
        name: np.frombuffer(data, kind, count=layout.num_rows, offset=layout.small_offset(name) - base)
        for name, kind in SMALL.items()
    }
