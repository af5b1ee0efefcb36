"""What an index was made of: its recipe, a fingerprint over it, and the refusal of any other.

manifest.json                 {"fingerprint": ..., "recipe": {...}}, written before the first shard
shard-00012.safetensors       its rows (format.py)
shard-00012.ids.jsonl         the ids of its rows, a JSON string a line
shard-00012.json              says that the shard is finished: sizes and checksums
shard-00012.lease             who is making it (rapidun/base/locks.py)
shard-00012.*.part            being written
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, sha256_json, sync, write_json
from rapidun.base.limits import refusing
from rapidun.base.parts import part_of, sweep_parts
from rapidun.config.index import IndexDtype
from rapidun.stages.influence.index.format import FORMAT_VERSION, Layout

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The recipe of one index, and what follows from it."""

    folder: Path
    recipe: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return sha256_json(self.recipe)

    @property
    def num_rows(self) -> int:
        return int(self.recipe["num_rows"])

    @property
    def k(self) -> int:
        return int(self.recipe["k"])

    @property
    def dtype(self) -> IndexDtype:
        return IndexDtype[self.recipe["dtype"]]

    @property
    def shard_rows(self) -> int:
        return int(self.recipe["shard_rows"])

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_rows)

    def span(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the row after its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows)

    def layout(self, shard: int) -> Layout:
        first, stop = self.span(shard)
        return Layout(num_rows=stop - first, k=self.k, dtype=self.dtype)

    def data_path(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.safetensors"

    def ids_path(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.ids.jsonl"

    def note_path(self, shard: int) -> Path:
        return self.folder / f"{shard_name(shard)}.json"

    def is_done(self, shard: int) -> bool:
        return self.note_path(shard).is_file()


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def new_recipe(*, num_rows: int, k: int, dtype: IndexDtype, shard_rows: int, source: dict[str, Any]) -> dict[str, Any]:
    """A recipe: the shape of the index, and `source`, everything that its numbers depend on (JSON values)."""
    return {
        "format": FORMAT_VERSION,
        "num_rows": num_rows,
        "k": k,
        "dtype": dtype.name,
        "shard_rows": shard_rows,
        "source": source,
    }


def claim_folder(folder: Path, recipe: dict[str, Any]) -> Manifest:
    """Make the folder an index of this recipe, or find that it is one already.

    Raises: ArtifactError if it is an index of something else (shows each difference), or something else holds the name.
    """
    manifest = Manifest(folder, recipe)
    with refusing(into=folder):
        make_folder(folder)
        sweep_parts(folder)
        if not (folder / MANIFEST).is_file():
            _write_first(folder / MANIFEST, {"fingerprint": manifest.fingerprint, "recipe": recipe})
    check_claim(manifest)
    return manifest


def check_claim(manifest: Manifest) -> None:
    """Raises: ArtifactError if the folder is an index of something else (shows each difference)."""
    found = open_manifest(manifest.folder)
    check_same(found, manifest.recipe, what="an index of these settings", mend="Pass another --out")


def make_folder(folder: Path) -> None:
    """Raises: ArtifactError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ArtifactError(f"{folder}: need a folder, got none: {error.strerror}. Change --out") from None


def check_room_for(folder: Path) -> None:
    """Whether a folder may be made there, before any work is done for it.

    Raises: ArtifactError if it, or what it would lie in, is a file.
    """
    for place in (folder, *folder.absolute().parents):
        if place.exists() and not place.is_dir():
            raise ArtifactError(f"{folder}: need a folder, got none: {place} is a file. Change --out")


def open_manifest(folder: Path) -> Manifest:
    """Read the manifest of an index.

    Raises: ArtifactError if there is none, or if it is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder}: need an index ({MANIFEST} in it), got none. Make it: rapidun index build")
    found = read_json(path)
    recipe = found.get("recipe") if isinstance(found, dict) else None
    if not isinstance(recipe, dict) or found.get("fingerprint") != sha256_json(recipe):
        raise ArtifactError(f"{path}: need a manifest that fits its own fingerprint, got a damaged file. Build anew")
    if recipe.get("format") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: need format {FORMAT_VERSION}, got {recipe.get('format')}. Build the index anew with this version"
        )
    return Manifest(folder, recipe)


def check_same(manifest: Manifest, wanted: dict[str, Any], *, what: str, mend: str) -> None:
    """Compare what `wanted` names with the recipe.

    Raises: ArtifactError with both values of everything that differs.
    """
    faults = list(_differences(wanted, manifest.recipe))
    if faults:
        raise ArtifactError(f"{manifest.folder}: need {what}, got one with {'; '.join(faults)}. {mend}")


def _differences(wanted: dict[str, Any], found: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in wanted:
        name = f"{prefix}{key}"
        ours, theirs = wanted[key], found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            # all but the shape of the index is in `source`: the word says nothing
            yield from _differences(ours, theirs, "" if key == "source" else f"{name}.")
        elif ours != theirs:
            yield f"{name} {_shown(theirs)} where {_shown(ours)} is asked for"


def _shown(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text


def _write_first(path: Path, value: object) -> None:
    """Write a file unless another process was first: then its file stays."""
    whole = part_of(path, ending="whole")
    try:
        write_json(whole, value)
        try:
            os.link(whole, path)
        except FileExistsError:
            return
        except OSError:  # a filesystem without hard links
            os.replace(whole, path)
        sync(path.parent)
    finally:
        whole.unlink(missing_ok=True)
