"""Reading an index from memory maps: block after block, with what has been read let go of at once."""

import hashlib
import json
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, sha256_json
from rapidun.stages.influence.index.format import NUMPY, PAGE, read_small, row_sums
from rapidun.stages.influence.index.manifest import Manifest, open_manifest
from rapidun.stages.influence.index.writer import finished

Item = TypeVar("Item")
Result = TypeVar("Result")
AGAIN = "Delete the three files of this shard and run the same rapidun index build again"


class Block(NamedTuple):
    """Consecutive rows of one shard. The arrays are views of a map: gone with the next block."""

    first_row: int
    rows: np.ndarray  # [n, K] int8 or float16
    scales: np.ndarray  # [n] float32
    norms: np.ndarray  # [n] float32


class Index:
    """A finished index.

    Raises: ArtifactError if there is none, if shards are missing, or if one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = open_manifest(folder)
        finished(self.manifest)
        self._known: dict[int, dict[str, np.ndarray]] = {}

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def k(self) -> int:
        return self.manifest.k

    def ids(self, shard: int) -> list[str]:
        return read_ids(self.manifest, shard, read_note(self.manifest, shard))

    def all_ids(self) -> Iterator[str]:
        """The rows' ids in order, one shard in memory at a time."""
        for shard in range(self.manifest.num_shards):
            yield from self.ids(shard)

    def ids_of(self, rows: set[int]) -> dict[int, str]:
        """The ids of some rows; each shard is asked once."""
        found: dict[int, str] = {}
        by_shard: dict[int, list[int]] = {}
        for row in sorted(rows):
            by_shard.setdefault(row // self.manifest.shard_rows, []).append(row)
        for shard, wanted in by_shard.items():
            first, _ = self.manifest.span(shard)
            lines = read_id_lines(self.manifest, shard, read_note(self.manifest, shard))
            found.update((row, json.loads(lines[row - first])) for row in wanted)
        return found

    def norms_of(self, rows: set[int]) -> dict[int, float]:
        """The norms of some rows as they were before rounding."""
        found = {}
        for row in rows:
            shard = row // self.manifest.shard_rows
            found[row] = float(self._small(shard)["norms"][row - self.manifest.span(shard)[0]])
        return found

    def spans(self, max_rows: int) -> Iterator["Span"]:
        """All rows in order, at most max_rows at a time."""
        for shard in range(self.manifest.num_shards):
            num_rows = self.manifest.layout(shard).num_rows
            for start in range(0, num_rows, max_rows):
                yield Span(shard, start, min(start + max_rows, num_rows))

    def read(self, span: "Span") -> "Mapped":
        """Map some rows, read them from the disk and check them: the bytes of each row are added up.

        Raises: ArtifactError for a shard of the wrong size, damaged scales or norms, or a damaged row.
        """
        shard, start, stop = span
        path = self.manifest.data_path(shard)
        layout = self.manifest.layout(shard)
        with open_data(path, layout.nbytes) as file:
            small = self._small(shard)
            # private: torch takes writable memory only; nobody writes
            memory = mmap.mmap(file.fileno(), layout.nbytes, flags=mmap.MAP_PRIVATE)
        memory.madvise(mmap.MADV_SEQUENTIAL)
        offset = PAGE + start * layout.row_nbytes
        rows = np.frombuffer(memory, NUMPY[layout.dtype], count=(stop - start) * layout.k, offset=offset)
        rows = rows.reshape(stop - start, layout.k)
        _check_sums(path, rows, small["sums"][start:stop], start)
        first_row = self.manifest.span(shard)[0] + start
        block = Block(first_row, rows, small["scales"][start:stop], small["norms"][start:stop])
        return Mapped(block, path, memory, offset, rows.nbytes)

    def blocks(self, *, max_rows: int) -> Iterator[Block]:
        """All rows in order; the next block is read while this one is worked on. Raises: as `read`."""
        for found in in_order(self.read, self.spans(max_rows), threads=1):
            yield found.block
            found.let_go()

    def _small(self, shard: int) -> dict[str, np.ndarray]:
        """The small arrays of a shard, kept for its next blocks."""
        found = self._known.get(shard)
        if found is None:
            layout = self.manifest.layout(shard)
            with open_data(self.manifest.data_path(shard), layout.nbytes) as file:
                header, start = os.pread(file.fileno(), PAGE, 0), layout.small_offset("sums")
                tail = os.pread(file.fileno(), layout.nbytes - start, start)
            found = check_small(self.manifest, shard, read_note(self.manifest, shard), header, tail)
            # several threads may do the same at once: they find the same
            self._known = {shard: found}
        return found


class Span(NamedTuple):
    """Rows `start` to before `stop` of a shard."""

    shard: int
    start: int
    stop: int


class Mapped(NamedTuple):
    """A block and the part of the map that it lies in."""

    block: Block
    path: Path
    memory: mmap.mmap
    start: int
    nbytes: int

    def let_go(self, *, keep_cached: bool = True) -> None:
        """Give the pages back: they no longer count as this process's memory.

        Args:
            keep_cached: False also drops them from the system's cache, for an index much larger than memory.
        """
        first, stop = self.start // PAGE * PAGE, self.start + self.nbytes
        self.memory.madvise(mmap.MADV_DONTNEED, first, stop - first)
        if not keep_cached:
            with self.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), first, stop - first, os.POSIX_FADV_DONTNEED)


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    start_thread: Callable[[], object] = lambda: None,
) -> Iterator[Result]:
    """function(item) of each item, in order, worked out by some threads that are at most `threads` items ahead."""
    left = iter(items)
    with ThreadPoolExecutor(threads, initializer=start_thread) as pool:
        ahead = deque(pool.submit(function, item) for item in islice(left, threads))
        try:
            while ahead:
                found = ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in islice(left, 1))
                yield found
        finally:
            for future in ahead:
                future.cancel()


def open_data(path: Path, nbytes: int) -> Any:
    """Open the rows of a shard for reading.

    Raises: ArtifactError if the file is missing or of another size than it was written with.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: need the rows of a finished shard, got no file. {AGAIN}") from None
    size = os.fstat(file.fileno()).st_size
    if size != nbytes:
        file.close()
        raise ArtifactError(f"{path}: need {nbytes:,} bytes, got {size:,}: the shard was cut or changed. {AGAIN}")
    return file


def read_note(manifest: Manifest, shard: int) -> dict[str, Any]:
    """What was noted when the shard was finished.

    Raises: ArtifactError if the note is damaged or belongs to an index of something else.
    """
    path = manifest.note_path(shard)
    note = read_json(path)
    if not isinstance(note, dict) or note.pop("check", None) != sha256_json(note):
        raise ArtifactError(f"{path}: need a note that fits its own checksum, got a damaged file. {AGAIN}")
    if note["fingerprint"] != manifest.fingerprint:
        raise ArtifactError(
            f"{path}: need a shard of the index {manifest.fingerprint[:12]} (manifest.json), got one of "
            f"{note['fingerprint'][:12]}. {AGAIN}"
        )
    first, stop = manifest.span(shard)
    if (note["first_row"], note["num_rows"]) != (first, stop - first):
        raise ArtifactError(
            f"{path}: need rows {first} to {stop - 1}, got {note['num_rows']} from {note['first_row']} on. {AGAIN}"
        )
    return note


def read_ids(manifest: Manifest, shard: int, note: dict[str, Any]) -> list[str]:
    """The ids of a shard's rows. Raises: as `read_id_lines`."""
    return [json.loads(line) for line in read_id_lines(manifest, shard, note)]


def read_id_lines(manifest: Manifest, shard: int, note: dict[str, Any]) -> list[bytes]:
    """The ids of a shard's rows as JSON strings.

    Raises: ArtifactError if the file is missing or not what was written.
    """
    path = manifest.ids_path(shard)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{path}: need the ids of a finished shard, got no file. {AGAIN}") from None
    if hashlib.sha256(data).hexdigest() != note["ids_sha256"]:
        raise ArtifactError(f"{path}: need the ids as written, got damaged bytes. {AGAIN}")
    # not splitlines: an id may hold one of the line ends that only Unicode knows
    return data.split(b"\n")[:-1]


def check_small(
    manifest: Manifest, shard: int, note: dict[str, Any], header: bytes, tail: bytes
) -> dict[str, np.ndarray]:
    """The scales, norms, losses and sums of a shard.

    Raises: ArtifactError if they or the header are not what was written.
    """
    if hashlib.sha256(header + tail).hexdigest() != note["small_sha256"]:
        raise ArtifactError(
            f"{manifest.data_path(shard)}: need the header, scales and norms as written, got damaged bytes. {AGAIN}"
        )
    return read_small(tail, manifest.layout(shard))


def _check_sums(path: Path, rows: np.ndarray, sums: np.ndarray, start: int) -> None:
    bad = np.flatnonzero(row_sums(rows) != sums)
    if len(bad):
        raise ArtifactError(
            f"{path}: need the bytes that were written, got damaged ones in row {start + bad[0]} of the shard. {AGAIN}"
        )
