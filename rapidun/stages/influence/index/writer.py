"""Many workers, one index: each claims shards that nobody has made, and resuming is the same thing.

A worker goes through the shards. One that is finished it passes by; one that somebody else holds it comes back to; any
other it claims, makes and publishes by rename, first the rows and their ids, then the note that says they are whole.
The lease only saves work: what a shard holds follows from the recipe alone, so two workers that make the same shard
write the same bytes. There is no last step: an index is finished when all notes are there.
"""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rapidun.base.errors import ArtifactError, ModelError
from rapidun.base.files import sha256_json, sync, write_atomic, write_json, write_text
from rapidun.base.limits import refusing
from rapidun.base.locks import Lease, Wait
from rapidun.stages.influence.index.format import Stored, quantise, small_bytes
from rapidun.stages.influence.index.manifest import Manifest, shard_name


class Vectors(NamedTuple):
    """The rows of one shard before they are rounded."""

    ids: list[str]
    vectors: np.ndarray  # [n, K] float32
    losses: np.ndarray  # [n]


MakeRows = Callable[[int, int], Vectors]
OnShard = Callable[[int, int], None]


def build_shards(
    manifest: Manifest,
    make_rows: MakeRows,
    *,
    on_shard: OnShard | None = None,
    tell: Callable[[str], None] | None = None,
) -> int:
    """Make whatever is missing, together with any other worker; returns when the whole index is there.

    Args:
        make_rows: the rows from the first to before the last of the two numbers; always the same for the same rows.
        on_shard: told (finished shards, all shards) after each that this worker made.
        tell: gets a line when this worker has to wait for others.
    Returns: how many shards this worker made.
    Raises: MachineError for a full disk; what make_rows raises. Nothing is half written then.
    """
    made = 0
    wait = Wait("the last shards", tell)
    # apart from each other, so that workers that start together seldom ask for the same shard
    start = random.randrange(manifest.num_shards)
    order = [(start + step) % manifest.num_shards for step in range(manifest.num_shards)]
    leases: dict[int, Lease] = {}
    while True:
        order = [shard for shard in order if not manifest.is_done(shard)]
        if not order:
            wait.end()
            _tidy(manifest)
            return made
        before = made
        for shard in order:
            if manifest.is_done(shard):
                continue
            # kept between rounds: a lease remembers since when its holder has shown no sign of life
            lease = leases.setdefault(shard, Lease(manifest.folder / f"{shard_name(shard)}.lease"))
            with refusing(into=manifest.folder):
                if not lease.try_acquire():
                    continue
            with lease:
                if not manifest.is_done(shard):
                    made += _make(manifest, shard, make_rows)
                    if on_shard is not None:
                        on_shard(sum(map(manifest.is_done, range(manifest.num_shards))), manifest.num_shards)
            del leases[shard]
        if made == before:
            holders = {lease.holder() for lease in leases.values()}
            wait.pause(lambda holders=holders: ", ".join(sorted(holders)))  # type: ignore[misc]


def _make(manifest: Manifest, shard: int, make_rows: MakeRows) -> int:
    """Make one shard; 0 where another worker took it over meanwhile."""
    _remove_parts(manifest, shard)
    first, stop = manifest.span(shard)
    found = make_rows(first, stop)
    if len(found.ids) != stop - first or found.vectors.shape != (stop - first, manifest.k):
        raise ValueError(f"need {stop - first} rows of {manifest.k}, got {len(found.ids)} and {found.vectors.shape}")
    try:
        stored = quantise(found.vectors, found.losses, dtype=manifest.dtype)
    except ArithmeticError as error:
        raise ModelError(f"{manifest.folder}: {shard_name(shard)}, from row {first} on: {error}") from error
    try:
        with refusing(into=manifest.folder):
            write_shard(manifest, shard, stored, found.ids)
    except FileNotFoundError:
        # this process was suspended, and who took over removed its unfinished file
        return 0
    return 1


def _remove_parts(manifest: Manifest, shard: int) -> None:
    """What a worker that was killed left half written."""
    for left in manifest.folder.glob(f"{shard_name(shard)}.*.part"):
        left.unlink(missing_ok=True)


def _tidy(manifest: Manifest) -> None:
    """Remove what workers left that were killed when their shard was finished but not given back."""
    for left in manifest.folder.glob("shard-*.lease.break.*"):
        # of a worker that was killed while it took a lease over; a live one does without, the shard is finished
        left.unlink(missing_ok=True)
    for path in manifest.folder.glob("shard-*.lease"):
        lease = Lease(path)
        if lease.try_acquire():
            with lease:
                _remove_parts(manifest, int(path.stem.removeprefix("shard-")))


def write_shard(manifest: Manifest, shard: int, stored: Stored, ids: list[str]) -> None:
    """Publish one shard: its rows, their ids, its note."""
    layout = manifest.layout(shard)
    header, small = layout.header(), small_bytes(stored)
    rows = stored.rows.reshape(-1).view(np.uint8).data
    whole = hashlib.sha256(header)
    whole.update(rows)
    whole.update(small)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            for piece in (header, rows, small):
                file.write(piece)

    write_atomic(manifest.data_path(shard), write, num_bytes=layout.nbytes)
    id_lines = "".join(json.dumps(name, ensure_ascii=False) + "\n" for name in ids)
    write_text(manifest.ids_path(shard), id_lines)
    sync(manifest.folder)
    first, stop = manifest.span(shard)
    write_note(
        manifest.note_path(shard),
        {
            "fingerprint": manifest.fingerprint,
            "first_row": first,
            "num_rows": stop - first,
            "nbytes": layout.nbytes,
            "sha256": whole.hexdigest(),
            "small_sha256": hashlib.sha256(header + small).hexdigest(),
            "ids_sha256": hashlib.sha256(id_lines.encode()).hexdigest(),
        },
    )


def write_note(path: Path, note: dict[str, object]) -> None:
    """Write a shard's note with a checksum over itself."""
    write_json(path, {**note, "check": sha256_json(note)})


def finished(manifest: Manifest) -> int:
    """Raises: ArtifactError if shards are missing (says how many). Returns: how many there are."""
    missing = [shard for shard in range(manifest.num_shards) if not manifest.is_done(shard)]
    if missing:
        raise ArtifactError(
            f"{manifest.folder}: need all {manifest.num_shards} shards, got {manifest.num_shards - len(missing)} "
            f"(the first that is missing: {shard_name(missing[0])}). Run the same rapidun index build again"
        )
    return manifest.num_shards
