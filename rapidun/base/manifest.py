"""What a finished artifact says of itself: manifest.json with the hash of every file, and a checksum over the rest.

    {"stage", "fingerprint", "version", "inputs", "result", "seconds", ..., "files": {name: {"bytes", "sha256"}},
     "reads": {"<kind>/<fingerprint>": digest of what it was made from}, "check": SHA-256 of all of this}

Manifests of earlier versions have no `reads` and no `check`, and are taken as they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import fits_its_seal, read_json, sha256_json

MANIFEST = "manifest.json"
# the log of making it, with the hours in it: no stage reads it
LOG = "metrics.jsonl"


class DamagedArtifact(ArtifactError):
    """A stored artifact is not as it was written: `faults` names each file."""

    def __init__(self, folder: Path, faults: list[str]) -> None:
        self.folder = folder
        self.faults = faults
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"store: {faults[0]}{more}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.faults)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished result: its folder and the manifest that says what made it."""

    stage: str
    fingerprint: str
    path: Path
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        """`poison/0123456789abcdef`: its folder below the store."""
        return f"{self.stage}/{self.fingerprint}"

    @property
    def result(self) -> dict[str, Any]:
        """What the stage said of its result."""
        found: dict[str, Any] = self.manifest["result"]
        return found

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Name below the folder -> {"bytes", "sha256"}."""
        found: dict[str, dict[str, Any]] = self.manifest["files"]
        return found

    @property
    def digest(self) -> str:
        """Over the names and hashes of all files that others read."""
        return sha256_json({name: entry.get("sha256") for name, entry in self.files.items() if name != LOG})


def read_artifact(folder: Path) -> Artifact:
    """What lies in `<store>/<kind>/<fingerprint>`; of its files only the manifest is looked at.

    Raises: DamagedArtifact if the manifest is not as it was written, or another artifact's.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except ArtifactError as error:
        raise DamagedArtifact(folder, [str(error)]) from None
    if not _is_manifest(manifest):
        raise DamagedArtifact(folder, [f"{path}: need what an artifact says of itself, got JSON of another shape"])
    if not fits_its_seal(manifest):
        raise DamagedArtifact(folder, [f"{path}: need a manifest that fits its own checksum, got a changed one"])
    kind, fingerprint = folder.parent.name, folder.name
    theirs = f"{manifest.get('stage', kind)}/{manifest.get('fingerprint', fingerprint)}"
    if theirs != f"{kind}/{fingerprint}":
        raise DamagedArtifact(folder, [f"{path}: need the manifest of {kind}/{fingerprint}, got that of {theirs}"])
    return Artifact(kind, fingerprint, folder, manifest)


def linked_folder(link: Path) -> Path:
    """The artifact that an entry of a run folder leads to: a link to it, or a folder with a link to its manifest."""
    return link.resolve() if link.is_symlink() or not link.is_dir() else (link / MANIFEST).resolve().parent


def _is_manifest(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("result"), dict):
        return False
    files = value.get("files")
    numbers = [value.get(key, 0) for key in ("seconds", "peak_memory_gb")]
    return (
        isinstance(files, dict)
        and all(isinstance(entry, dict) and isinstance(entry.get("bytes"), int) for entry in files.values())
        and all(isinstance(number, int | float) for number in numbers)
        and isinstance(value.get("reads", {}), dict)
    )


def size_faults(artifact: Artifact) -> list[str]:
    """A line for each file that is missing or of another size: what shows without reading it."""
    faults = []
    for name, entry in artifact.files.items():
        path = artifact.path / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            faults.append(f"{path}: need {entry['bytes']} bytes, got {'none' if size is None else f'{size} bytes'}")
    return faults
