"""What was read to check a result: every file once, with its hash; and what is not as it was written."""

from pathlib import Path
from typing import Any

from rapidun.base.files import sha256_file, sha256_json
from rapidun.base.hashes import Hashes
from rapidun.base.manifest import MANIFEST, Artifact, DamagedArtifact, read_artifact
from rapidun.pipeline.folder import git_commit


class Ledger:
    """Files by name with their SHA-256, faults, and notes (what is no fault, and should be known)."""

    def __init__(self) -> None:
        # `poison/0123456789abcdef/model/config.json`, `<run>/result.json` -> SHA-256
        self.hashes: dict[str, str] = {}
        self.num_bytes = 0
        self.num_runs = 0
        self.faults: list[str] = []
        self.notes: dict[str, None] = {}
        # what was made by which code, to be said in few lines
        self.commits: dict[str, int] = {}
        self.packages: dict[tuple[str, str], None] = {}
        self._artifacts: dict[Path, Artifact | None] = {}

    @property
    def num_artifacts(self) -> int:
        return sum(artifact is not None for artifact in self._artifacts.values())

    @property
    def digest(self) -> str:
        """One SHA-256 over the names and hashes of all files, in the order of their names."""
        return sha256_json(self.hashes)

    def fault(self, line: str) -> None:
        if line not in self.faults:
            self.faults.append(line)

    def file(self, name: str, path: Path) -> None:
        """Read a file that is there."""
        self.hashes[name] = sha256_file(path)
        self.num_bytes += path.stat().st_size

    def artifact(self, folder: Path) -> Artifact | None:
        """Read an artifact and all that it was made from; None, and a fault, where it is not as it was written."""
        if folder not in self._artifacts:
            self._artifacts[folder] = None  # whatever its manifest says: no circle
            self._artifacts[folder] = self._read(folder)
        return self._artifacts[folder]

    def _read(self, folder: Path) -> Artifact | None:
        try:
            found = read_artifact(folder)
        except DamagedArtifact as damage:
            self.faults += damage.faults
            return None
        faults = Hashes(folder).faults(found, memo=False)
        inputs = {"stage": found.stage, **{key: found.manifest.get(key) for key in ("version", "inputs")}}
        if inputs["inputs"] is not None and sha256_json(inputs)[:16] != found.fingerprint:
            faults.append(f"{folder / MANIFEST}: need inputs whose fingerprint is {found.fingerprint}, got others")
        faults += [
            f"{path}: need no other files than those that were written, got this one"
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".") and str(path.relative_to(folder)) not in found.files
            and path != folder / MANIFEST
        ]  # fmt: skip
        self.faults += faults
        if faults:
            return None
        for name, entry in found.files.items():
            if "sha256" not in entry:
                self.file(f"{found.id}/{name}", folder / name)
                self.notes["some artifacts are of an early version and without a hash: only sizes were compared"] = None
                continue
            self.hashes[f"{found.id}/{name}"] = str(entry["sha256"])
            self.num_bytes += entry["bytes"]
        self.file(f"{found.id}/{MANIFEST}", folder / MANIFEST)
        self._note_packages(found.manifest)
        self._note_extensions(found)
        self._follow(found)
        return found

    def _follow(self, found: Artifact) -> None:
        """What it was made from: the same bytes must be there."""
        reads = found.manifest.get("reads")
        if reads is None:
            self.notes["some artifacts were made by an earlier version, which did not note what it read"] = None
            return
        root = found.path.parents[1]
        for id, digest in reads.items():
            if not (root / id / MANIFEST).is_file():
                self.notes[f"{id} is no longer in the store; what was made from it is"] = None
                continue
            source = self.artifact(root / id)
            if source is not None and source.digest != digest:
                self.fault(
                    f"{found.path}: need the {id} that it was made from (digest {str(digest)[:12]}...), got another "
                    f"one there ({source.digest[:12]}...)"
                )

    def _note_extensions(self, found: Artifact) -> None:
        inputs = found.manifest.get("inputs")
        for one in (inputs.get("extension") or ()) if isinstance(inputs, dict) else ():
            if isinstance(one, dict):
                whose = f"{one.get('name')}, code that is not rapidun's (SHA-256 {one.get('sha256')})"
                self.notes[f"{found.id} was made by {whose}"] = None

    def _note_packages(self, manifest: dict[str, Any]) -> None:
        packages = manifest.get("packages")
        for name, version in packages.items() if isinstance(packages, dict) else ():
            self.packages[str(name), str(version)] = None

    def code_notes(self, versions: dict[str, str]) -> list[str]:
        """Where the code that made it is not the one that is here. Args: versions: of the packages that are here."""
        here = git_commit()
        notes = [
            f"{number} {'run' if number == 1 else 'runs'} made by commit {commit}, this is {here}; by the stages' "
            "versions their numbers are the same"
            for commit, number in self.commits.items()
            if commit != str(here)
        ]
        if str(here).endswith("-dirty") or any(commit.endswith("-dirty") for commit in self.commits):
            notes.append("a checkout with changes that are in no commit (-dirty) cannot be told from another one")
        other = [f"{name} {old}" for name, old in self.packages if versions.get(name, "none") != old]
        if other:
            notes.append(f"made with other packages than are here: {', '.join(other)}")
        return notes
