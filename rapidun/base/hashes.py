"""Hashes of files, remembered in store/hashes by size, time and inode, so that bytes are read once.

A file that was changed and has all three as before is taken for unchanged; `rapidun verify` and `rapidun store verify`
remember nothing. Right after a write a second one may leave the time as it is: what is younger than SETTLED_SECONDS
is not remembered. Whatever is wrong with a note, the file is read.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import fits_its_seal, read_json, sealed, sha256_file, sha256_json
from rapidun.base.manifest import Artifact, size_faults
from rapidun.base.parts import part_of

# the coarsest clock of a filesystem in use (FAT)
SETTLED_SECONDS = 2.0


class Hashes:
    """What is remembered in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of_file(self, path: Path) -> str:
        """SHA-256 of an input file: model files are large."""
        began, stat = time.time(), path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        # a file of its own for each: processes that add theirs at the same moment lose nothing
        note = self.folder / f"{sha256_json(key)[:32]}.json"
        known = self._read(note)
        if known.get("key") == key and isinstance(known.get("sha256"), str):
            return str(known["sha256"])
        digest = sha256_file(path)
        if _is_settled(stat, began):
            self._write(note, {"key": key, "sha256": digest})
        return digest

    def faults(self, artifact: Artifact, *, memo: bool = True) -> list[str]:
        """A line for each file of an artifact that is not as it was written; empty where all are.

        Args: memo: files that were read before and have not been touched since are not read again.
        """
        faults = size_faults(artifact)
        if faults:
            return faults
        note = self._note(artifact)
        known = self._known(note) if memo else {}
        found: dict[str, list[Any]] = {}
        for name, entry in artifact.files.items():
            path = artifact.path / name
            if "sha256" not in entry:
                continue  # of an early version, which kept sizes alone
            began, stat = time.time(), path.stat()
            seal = [*_identity(stat), entry["sha256"]]
            if known.get(name) != seal:
                digest = sha256_file(path)
                if digest != entry["sha256"]:
                    faults.append(
                        f"{path}: need sha256 {str(entry['sha256'])[:12]}..., got {digest[:12]}...: its bytes changed"
                    )
                    continue
            if known.get(name) == seal or _is_settled(stat, began):
                found[name] = seal
        if memo and found != known:
            self._write(note, {"files": found})
        return faults

    def remember(self, artifact: Artifact, *, began: float) -> None:
        """Note the files of an artifact that was just published. Args: began: when its hashes began to be taken."""
        stats = {name: (artifact.path / name).stat() for name in artifact.files}
        found = {
            name: [*_identity(stat), artifact.files[name]["sha256"]]
            for name, stat in stats.items()
            if _is_settled(stat, began)
        }
        if found:
            self._write(self._note(artifact), {"files": found})

    def _note(self, artifact: Artifact) -> Path:
        return self.folder / f"{artifact.stage}-{artifact.fingerprint}.json"

    def _known(self, note: Path) -> dict[str, Any]:
        found = self._read(note).get("files")
        return found if isinstance(found, dict) else {}

    def _read(self, note: Path) -> dict[str, Any]:
        if not note.is_file():
            return {}
        try:
            found = read_json(note)
        except (ArtifactError, OSError):
            return {}
        if not isinstance(found, dict):
            return {}
        return found if fits_its_seal(found) else {}

    def _write(self, note: Path, value: dict[str, Any]) -> None:
        """Without waiting for the disk: a note that is lost costs a read, and so does one that cannot be written."""
        part = part_of(note)
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(sealed(value)), encoding="utf-8")
            os.replace(part, note)
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _identity(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _is_settled(stat: os.stat_result, began: float) -> bool:
    return began - stat.st_mtime > SETTLED_SECONDS
