"""Checking all of an index: every byte by SHA-256, the number of rows, and that no row is there twice."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rapidun.base.errors import ArtifactError
from rapidun.stages.influence.index.format import PAGE
from rapidun.stages.influence.index.manifest import Manifest, open_manifest
from rapidun.stages.influence.index.reader import AGAIN, check_small, open_data, read_ids, read_note

CHUNK = 1 << 24


class Verified(NamedTuple):
    num_rows: int
    num_shards: int
    num_missing: int  # shards that nobody has made yet
    faults: list[str]  # one message for each shard that is not as it was written


def verify_index(folder: Path) -> Verified:
    """Read everything.

    Raises: ArtifactError if the folder is no index, or its manifest is damaged.
    """
    manifest = open_manifest(folder)
    faults: list[str] = []
    num_missing = 0
    num_rows = 0
    # 16 bytes a row: two ids with the same digest are the same id
    digests: list[np.ndarray] = []
    for shard in range(manifest.num_shards):
        if not manifest.is_done(shard):
            num_missing += 1
            continue
        try:
            ids = _check_shard(manifest, shard)
        except ArtifactError as error:
            faults.append(str(error))
            continue
        num_rows += len(ids)
        digests.append(
            np.frombuffer(b"".join(hashlib.blake2b(i.encode(), digest_size=16).digest() for i in ids), "V16")
        )
    if digests:
        num_repeated = num_rows - len(np.unique(np.concatenate(digests)))
        if num_repeated:
            faults.append(f"{folder}: need every row once, got {num_repeated} ids again. Build the index anew")
    return Verified(num_rows, manifest.num_shards, num_missing, faults)


def drop_damaged(manifest: Manifest, *, tell: Callable[[str], None]) -> None:
    """Take finished shards that are not as they were written for missing, so that a build makes them anew."""
    for shard in filter(manifest.is_done, range(manifest.num_shards)):
        try:
            _check_shard(manifest, shard)
        except ArtifactError as error:
            tell(f"{str(error).removesuffix(AGAIN)}The shard is made anew")
            # first what says that it is finished
            manifest.note_path(shard).unlink(missing_ok=True)
            manifest.data_path(shard).unlink(missing_ok=True)
            manifest.ids_path(shard).unlink(missing_ok=True)


def _check_shard(manifest: Manifest, shard: int) -> list[str]:
    """The ids of a shard that is whole.

    Raises: ArtifactError.
    """
    note = read_note(manifest, shard)
    path = manifest.data_path(shard)
    layout = manifest.layout(shard)
    digest = hashlib.sha256()
    with open_data(path, layout.nbytes) as file:
        header = file.read(PAGE)
        digest.update(header)
        left = layout.rows_nbytes
        while left:
            chunk = file.read(min(CHUNK, left))
            digest.update(chunk)
            left -= len(chunk)
        tail = file.read()
        digest.update(tail)
    if digest.hexdigest() != note["sha256"]:
        raise ArtifactError(
            f"{path}: need SHA-256 {note['sha256'][:12]}..., got {digest.hexdigest()[:12]}...: damaged bytes. {AGAIN}"
        )
    check_small(manifest, shard, note, header, tail)
    return read_ids(manifest, shard, note)
