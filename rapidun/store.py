"""The artifact store: each result once, named by a fingerprint of what made it, published whole or not at all.

store/<stage>/<fingerprint>/        a finished artifact with its manifest.json
store/<stage>/<fingerprint>.part/   being written
store/<stage>/<fingerprint>.work/   checkpoints of a stage that was killed; it goes on from there
store/<stage>/<fingerprint>.lock    held by the process that makes it
store/runs.txt                      run folders that link here, relative to the store
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rapidun.errors import ArtifactError, ConfigError
from rapidun.files import read_json, sha256_file, sha256_json, sync, write_json
from rapidun.measure import Measured

# raised when a stage's results change though its settings do not
STAGE_VERSIONS = {"model": 2, "data": 1, "poison": 2, "influence": 1, "mapping": 1, "unlearning": 1, "evaluation": 1}
RUNS_FILE = "runs.txt"
NOTED_PACKAGES = ("rapidun", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "tokenizers")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished result: its folder and the manifest that says what made it."""

    stage: str
    fingerprint: str
    path: Path
    manifest: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        """What the stage said of its result."""
        return self.manifest["result"]


def fingerprint(stage: str, inputs: dict[str, Any]) -> str:
    """16 hex digits over the stage, its version and everything that its result depends on."""
    return sha256_json({"stage": stage, "version": STAGE_VERSIONS[stage], "inputs": inputs})[:16]


class Store:
    """Finds, makes, checks and removes artifacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file_hash(self, path: Path) -> str:
        """SHA-256 of an input file, remembered by its path, size and times: model files are large."""
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        cache = self.root / "hashes.json"
        known = read_json(cache) if cache.is_file() else {}
        if key not in known:
            known[key] = sha256_file(path)
            write_json(cache, known)
        return known[key]

    def find(self, stage: str, inputs: dict[str, Any]) -> Artifact | None:
        """The finished artifact of these inputs, or None.

        Raises: ArtifactError if its files are not those that the manifest lists.
        """
        name = fingerprint(stage, inputs)
        path = self.root / stage / name
        if not (path / "manifest.json").is_file():
            return None
        manifest = read_json(path / "manifest.json")
        for file, entry in manifest["files"].items():
            found = (path / file).stat().st_size if (path / file).is_file() else None
            if found != entry["bytes"]:
                raise ArtifactError(
                    f"store: need {path / file} with {entry['bytes']} bytes, got "
                    f"{'none' if found is None else f'{found} bytes'}. Delete the folder {path} and run again"
                )
        return Artifact(stage, name, path, manifest)

    def make(
        self, stage: str, inputs: dict[str, Any], build: Callable[[Path, Path], dict[str, Any]]
    ) -> tuple[Artifact, bool]:
        """Find the artifact or build it under its lock: (artifact, whether it was there already).

        `build(out, work)` fills `out` and returns what the manifest keeps as "result"; `work` survives a kill.
        """
        from filelock import FileLock

        folder = self.root / stage
        name = fingerprint(stage, inputs)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"store_dir: need a folder that can be written, got {self.root} ({error.strerror}). Pass store_dir=..."
            ) from None
        with FileLock(str(folder / f"{name}.lock")):
            found = self.find(stage, inputs)
            if found is not None:
                return found, True
            out, work = folder / f"{name}.part", folder / f"{name}.work"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            work.mkdir(exist_ok=True)
            measured = Measured()
            try:
                with measured:
                    result = build(out, work)
            except BaseException:
                shutil.rmtree(out, ignore_errors=True)
                if not any(work.iterdir()):
                    work.rmdir()
                raise
            manifest: dict[str, Any] = {
                "stage": stage,
                "fingerprint": name,
                "version": STAGE_VERSIONS[stage],
                "inputs": inputs,
                "result": result,
                "seconds": measured.seconds,
                "peak_memory_gb": measured.peak_memory_gb,
                "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "packages": _versions(),
                "files": {
                    str(file.relative_to(out)): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
                    for file in sorted(out.rglob("*"))
                    if file.is_file()
                },
            }
            for file in manifest["files"]:
                sync(out / file)
            write_json(out / "manifest.json", manifest)
            os.rename(out, folder / name)
            sync(folder)
            shutil.rmtree(work, ignore_errors=True)
            return Artifact(stage, name, folder / name, manifest), False

    def note_run(self, run_dir: Path) -> None:
        """Remember a run folder that links here, wherever it stands, so that prune leaves its artifacts alone."""
        line = os.path.relpath(run_dir.resolve(), self.root.resolve())
        if line not in self._noted_runs():
            with (self.root / RUNS_FILE).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    def run_folders(self) -> list[Path]:
        """The noted run folders that are still there."""
        root = self.root.resolve()
        folders = [Path(os.path.normpath(root / line)) for line in self._noted_runs()]
        return [folder for folder in folders if folder.is_dir()]

    def _noted_runs(self) -> list[str]:
        notes = self.root / RUNS_FILE
        return notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []

    def artifacts(self) -> Iterator[Artifact]:
        """Every finished artifact, stage by stage, oldest first."""
        for stage in STAGE_VERSIONS:
            manifests = [
                (p.stat().st_mtime, p) for p in (self.root / stage).glob("*/manifest.json") if not p.parent.suffix
            ]
            for _, path in sorted(manifests):
                yield Artifact(stage, path.parent.name, path.parent, read_json(path))

    def verify(self) -> list[str]:
        """Compare every file with the hash in its manifest; one line for each that differs."""
        faults = []
        for artifact in self.artifacts():
            for file, entry in artifact.manifest["files"].items():
                path = artifact.path / file
                if not path.is_file():
                    faults.append(f"{path}: missing")
                elif sha256_file(path) != entry["sha256"]:
                    faults.append(f"{path}: need sha256 {entry['sha256'][:12]}..., got {sha256_file(path)[:12]}...")
        return faults

    def prune(self, keep: set[Path], *, dry_run: bool) -> list[Path]:
        """Remove what no run links to, and the leftovers of killed stages that nobody holds."""
        from filelock import FileLock, Timeout

        removed = []
        for stage in STAGE_VERSIONS:
            folder = self.root / stage
            for path in sorted(p for p in folder.glob("*") if p.is_dir() and p.resolve() not in keep):
                try:
                    with FileLock(str(folder / f"{path.stem}.lock"), timeout=0):
                        if not dry_run:
                            shutil.rmtree(path)
                        removed.append(path)
                except Timeout:
                    continue  # somebody is making it
        return removed


def linked_artifacts(outputs: Path, runs: Sequence[Path] = ()) -> set[Path]:
    """The store folders that run folders below `outputs`, and `runs` elsewhere, link to."""
    folders = [*outputs.glob("runs/*"), *outputs.glob("sweeps/*/*"), *runs]
    links = (path for folder in folders for pattern in ("*", "evaluation/*") for path in folder.glob(pattern))
    found = set()
    for link in filter(Path.is_symlink, links):
        target = link.resolve()
        found.add(target if target.is_dir() else target.parent)
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in NOTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(argv: Sequence[str]) -> int:
    """`rapidun store list|verify|prune`."""
    parser = argparse.ArgumentParser(prog="rapidun store", description="List, check or prune the artifact store.")
    parser.add_argument("action", choices=["list", "verify", "prune"])
    parser.add_argument("--store", type=Path, default=Path("outputs/store"), help="the store (default: %(default)s)")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="prune keeps what runs below this link to"
    )
    parser.add_argument("--dry-run", action="store_true", help="prune: say what would go")
    args = parser.parse_args(argv)
    if not args.store.is_dir():
        raise ConfigError(f"store: need a folder, got {args.store}. Pass --store DIR")
    store = Store(args.store)
    if args.action == "list":
        for artifact in store.artifacts():
            size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
            made, seconds = artifact.manifest["made"], artifact.manifest["seconds"]
            print(f"{artifact.stage:<11} {artifact.fingerprint} {size / 2**20:9.1f} MiB {seconds:8.1f} s  {made}")
        return 0
    if args.action == "verify":
        faults = store.verify()
        for fault in faults:
            print(fault)
        print(f"{len(faults)} damaged files" if faults else "all artifacts are whole")
        return 1 if faults else 0
    removed = store.prune(linked_artifacts(args.outputs, store.run_folders()), dry_run=args.dry_run)
    for path in removed:
        print(f"{'would remove' if args.dry_run else 'removed'} {path}")
    print(f"{len(removed)} folders")
    return 0
