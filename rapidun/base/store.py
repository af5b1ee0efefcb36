"""The artifact store: each result once, named by a fingerprint of what made it, published whole or not at all.

store/<kind>/<fingerprint>/                a finished artifact with its manifest.json
store/<kind>/<fingerprint>.lease           names the process that makes it; expires when that process is gone
store/<kind>/<fingerprint>.<token>.part/   being written by the holder of this token
store/<kind>/<fingerprint>.<token>.work/   its checkpoints; who takes over adopts those of a dead holder
store/<kind>/<fingerprint>.<token>.damaged/   found to be not as it was written, and made anew since
store/<kind>/<fingerprint>.<token>.gone/   being removed
store/hashes/, store/runs/                  hashes of files (hashes.py); run folders that link here, from the store on

The lease saves work and guarantees nothing (rapidun/base/locks.py). What makes an artifact right whoever else is at it:
every holder writes in folders of its own, a folder changes hands or appears by one rename, and of two results the
second is thrown away whole.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rapidun.base import processes
from rapidun.base.claims import Claim, remove_folder
from rapidun.base.errors import ArtifactError, ConfigError
from rapidun.base.files import sealed, sha256_file, sha256_json, sync, write_atomic, write_json, writing
from rapidun.base.hashes import Hashes
from rapidun.base.limits import refusal
from rapidun.base.locks import Lease, Wait, new_token
from rapidun.base.machine import Measured
from rapidun.base.manifest import MANIFEST, Artifact, DamagedArtifact, read_artifact, size_faults
from rapidun.base.parts import sweep_parts

# a finished artifact may reach this process's view of a shared filesystem later than the message that says so
VISIBLE_AFTER = 120.0
# a store on a disk that may only be read: what is there can be used
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
NOTED_PACKAGES = ("rapidun", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "tokenizers")


@dataclass(frozen=True, eq=False)
class Key:
    """What an artifact is called by: its kind, the version of what makes it, everything that its contents depend on."""

    kind: str
    version: int
    inputs: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all three."""
        return sha256_json({"stage": self.kind, "version": self.version, "inputs": self.inputs})[:16]

    @property
    def id(self) -> str:
        """`poison/0123456789abcdef`: its folder below the store."""
        return f"{self.kind}/{self.fingerprint}"


class Store:
    """Finds, makes, checks and removes artifacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._is_tidy = False

    @cached_property
    def hashes(self) -> Hashes:
        return Hashes(self.root / "hashes")

    def file_hash(self, path: Path) -> str:
        """SHA-256 of an input file, remembered by its path, size and times."""
        return self.hashes.of_file(path)

    def find(self, key: Key) -> Artifact | None:
        """The finished artifact of this key, or None; one that shows damage without being read is none."""
        try:
            found = self._look(key)
        except DamagedArtifact:
            return None
        if found is not None:
            self._clear(key)
        return found

    def whole(self, key: Key) -> Artifact | None:
        """The finished artifact of this key after its files were compared with their hashes, or None where none is.

        Raises: DamagedArtifact, naming the files that are not as they were written.
        """
        found = self._look(key)
        try:
            faults = self.hashes.faults(found) if found is not None else []
        except FileNotFoundError:
            return None  # another process has moved it away meanwhile
        if found is not None and faults:
            raise DamagedArtifact(found.path, faults)
        if found is not None:
            self._clear(key)
        return found

    def _clear(self, key: Key) -> None:
        """Remove what a process left that was killed between publishing this artifact and tidying up behind it."""
        folder = self.root / key.kind
        left = folder / f"{key.fingerprint}.lease"
        # a store that can only be read keeps it, and so does a holder with other settings
        with suppress(OSError, ConfigError):
            if not left.exists():
                return
            lease = Lease(left)
            if not lease.try_acquire():
                return  # it is alive, and tidies up itself
            with lease:
                for path in folder.glob(f"{key.fingerprint}.*"):
                    if path.suffix in (".work", ".part", ".gone") and path.is_dir():
                        remove_folder(path)

    def _look(self, key: Key) -> Artifact | None:
        path = self.root / key.kind / key.fingerprint
        if not (path / MANIFEST).is_file():
            return None
        found = read_artifact(path)
        faults = size_faults(found)
        if faults:
            raise DamagedArtifact(path, faults)
        return found

    def set_aside_damaged(self, key: Key, *, tell: Callable[[str], None] | None = None) -> None:
        """Move the artifact of this key away if it is not as it was written, so that it is made anew, and say so."""
        wait = Wait(key.id, tell)
        lease = Lease(self.root / key.kind / f"{key.fingerprint}.lease")
        while self._damage(key) is not None:
            if not lease.try_acquire():
                # another process has seen the same, or makes it anew already
                wait.pause(lambda: f"{lease.holder()} looks after it")
                continue
            with lease:
                self._set_aside(key, tell)
        wait.end()

    def _damage(self, key: Key) -> DamagedArtifact | None:
        try:
            self.whole(key)
        except DamagedArtifact as damage:
            return damage
        return None

    def _set_aside(self, key: Key, tell: Callable[[str], None] | None) -> None:
        """What `set_aside_damaged` does, by the holder of the lease."""
        damage = self._damage(key)
        if damage is None:
            return
        aside = damage.folder.with_name(f"{damage.folder.name}.{new_token()}.damaged")
        os.rename(damage.folder, aside)
        if tell is not None:
            tell(f"{damage}. The folder is {aside.name} now, and the artifact is made anew")

    def make(
        self,
        key: Key,
        build: Callable[[Path, Path], dict[str, Any]],
        *,
        together: bool = False,
        reads: Mapping[str, str] | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> tuple[Artifact, bool]:
        """Find the artifact or build it: (artifact, whether somebody else made it, now or earlier).

        `build(out, work)` fills `out` and returns what the manifest keeps as "result"; `work` survives a kill.

        Args:
            together: of a run's several processes all run `build`, in the same folders, and rank 0's result counts;
                otherwise only rank 0 does and the others wait. reads: id -> digest of what it is made from, for the
                manifest. on_wait: told who else makes it, how long that took, and what was found damaged.
        Raises: what `build` raises; PeerFailed on the other processes.
        """
        with processes.failing_together(), writing(self.root / key.id):
            while True:
                claim = self._claim(key, on_wait) if processes.is_main() else None
                with claim or nullcontext():
                    token = processes.share(claim.token if claim else None)
                    if token is None:
                        return self._expect(key), True
                    outcome = None
                    if claim is not None:
                        outcome = self._build(key, build, claim, together=together, reads=reads or {})
                    elif together:
                        self._help(key, build, token)
                    outcome = processes.share(outcome)
                    if outcome != "superseded":
                        return self._expect(key), outcome == "found"

    def _claim(self, key: Key, on_wait: Callable[[str], None] | None) -> Claim | None:
        """The right to make an artifact; None once it is there. Waits while another process makes it."""
        name = key.fingerprint
        folder = self.root / key.kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(error, {"store_dir": self.root}) or ConfigError(
                f"store_dir: need a folder that can be written, got {self.root} ({error.strerror}). Pass store_dir=..."
            ) from None
        lease = Lease(folder / f"{name}.lease")
        wait = Wait(f"{key.kind} {name}", on_wait)
        while self.find(key) is None:
            if not lease.try_acquire():
                wait.pause(lambda: f"{lease.holder()} makes it{_since(folder, name)}")
                continue
            try:
                found = self.find(key)
                if found is None:
                    self._set_aside(key, on_wait)
                    self._tidy()
                claim = Claim(folder, name, lease) if found is None else None
            except BaseException:
                lease.release()
                raise
            if claim is None:
                lease.release()
                break
            wait.end()
            return claim
        wait.end()
        return None

    def _build(
        self,
        key: Key,
        build: Callable[[Path, Path], dict[str, Any]],
        claim: Claim,
        *,
        together: bool,
        reads: Mapping[str, str],
    ) -> str:
        """Make and publish: "made", "found" (another has published) or "superseded" (another works on it)."""
        claim.open()
        measured = Measured()
        out = claim.out
        try:
            with measured:
                if together:
                    with processes.collective():
                        result = build(out, claim.work)
                        processes.barrier(f"{key.kind} built")
                else:
                    result = build(out, claim.work)
            began = time.time()
            manifest = sealed(self._manifest(key, result, measured, out, reads))
            write_json(out / MANIFEST, manifest)
            if not claim.publish():
                return "found"
            path = self.root / key.kind / key.fingerprint
            self.hashes.remember(Artifact(key.kind, key.fingerprint, path, manifest), began=began)
            return "made"
        except Exception:
            lost = not claim.intact()
            claim.discard()
            # whoever took over took our folders: that is no fault of the build
            if lost and processes.world_size() == 1:
                return "superseded"
            raise
        except BaseException:
            claim.discard()
            raise

    def _help(self, key: Key, build: Callable[[Path, Path], Any], token: str) -> None:
        """Take part, on a rank other than 0, in a build whose folders rank 0 has made."""
        stem = self.root / key.kind / f"{key.fingerprint}.{token}"
        with processes.collective():
            build(Path(f"{stem}.part"), Path(f"{stem}.work"))
            processes.barrier(f"{key.kind} built")

    def _manifest(
        self, key: Key, result: dict[str, Any], measured: Measured, out: Path, reads: Mapping[str, str]
    ) -> dict[str, Any]:
        """What is known of a result, whose files are flushed to disk."""
        manifest: dict[str, Any] = {
            "stage": key.kind,
            "fingerprint": key.fingerprint,
            "version": key.version,
            "inputs": key.inputs,
            "result": result,
            "seconds": measured.seconds,
            "peak_memory_gb": measured.peak_memory_gb,
            "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "packages": package_versions(),
            "reads": dict(reads),
            "files": {
                str(file.relative_to(out)): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
                for file in sorted(out.rglob("*"))
                if file.is_file()
            },
        }
        for file in manifest["files"]:
            sync(out / file)
        return manifest

    def _expect(self, key: Key) -> Artifact:
        """The artifact that is known to be there."""
        wait = Wait(key.kind, None)
        while (found := self.find(key)) is None:
            if wait.seconds > VISIBLE_AFTER:
                raise ArtifactError(
                    f"store: need {self.root / key.id}, which was made, found none. Was it "
                    "removed, or is store_dir not the same folder for every process?"
                )
            wait.pause(str)
        return found

    def note_run(self, run_dir: Path) -> str:
        """Remember a run folder that links here, wherever it stands, so that prune leaves its artifacts alone.

        Returns: what is to be said where the store takes no note; empty where it does.
        """
        line = os.path.relpath(run_dir.resolve(), self.root.resolve())
        note = self.root / "runs" / f"{sha256_json(line)[:32]}.txt"
        if not note.is_file():
            # bytes, and one path a file: a name may hold a line end, and letters that are no UTF-8
            try:
                write_atomic(note, lambda part: part.write_bytes(os.fsencode(line) + b"\n"))
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                return (
                    f"store_dir: {self.root} cannot be written, so that rapidun store prune there will not know of "
                    f"{run_dir}, and may remove what it links to"
                )
        return ""

    def run_folders(self) -> list[Path]:
        """The noted run folders that are still there."""
        root = self.root.resolve()
        lines = [os.fsdecode(note.read_bytes()).removesuffix("\n") for note in sorted((root / "runs").glob("*.txt"))]
        # earlier versions kept one list
        lists = filter(Path.is_file, [root / "runs.txt"])
        lines += [line for note in lists for line in note.read_text(encoding="utf-8").split("\n")]
        folders = [Path(os.path.normpath(root / line)) for line in dict.fromkeys(filter(None, lines))]
        return [folder for folder in folders if folder.is_dir()]

    def artifacts(self, kinds: Iterable[str], *, tell: Callable[[str], None] | None = None) -> Iterator[Artifact]:
        """Every finished artifact, kind by kind, oldest first. Args: tell: gets a line for each damaged manifest."""
        for kind in kinds:
            manifests = [
                (p.stat().st_mtime, p) for p in (self.root / kind).glob(f"*/{MANIFEST}") if not p.parent.suffix
            ]
            for _, path in sorted(manifests):
                try:
                    yield read_artifact(path.parent)
                except DamagedArtifact as damage:
                    if tell is not None:
                        tell(damage.faults[0])

    def verify(self, kinds: Iterable[str]) -> list[str]:
        """Compare every file with the hash in its manifest, read anew; one line for each that differs."""
        faults: list[str] = []
        for artifact in self.artifacts(kinds, tell=faults.append):
            faults += self.hashes.faults(artifact, memo=False)
        return faults

    def _tidy(self) -> None:
        """Remove what processes left that were killed while they wrote a note."""
        if not self._is_tidy:
            self._is_tidy = True
            sweep_parts(self.root / "hashes", self.root / "runs")

    def prune(self, kinds: Iterable[str], keep: set[Path], *, dry_run: bool) -> list[Path]:
        """Remove what no run links to, and the leftovers of killed stages; what a live process makes stays."""
        removed = []
        for kind in kinds:
            folder = self.root / kind
            for name in sorted({path.name.partition(".")[0] for path in folder.glob("*")}):
                lease = Lease(folder / f"{name}.lease")
                if not lease.try_acquire():
                    continue  # somebody is making it
                with lease:
                    found = [folder / name, *sorted(folder.glob(f"{name}.*"))]
                    for path in (p for p in found if p.is_dir() and p.resolve() not in keep):
                        if not dry_run:
                            remove_folder(path)
                        removed.append(path)
                    # earlier versions locked a file that stayed
                    if not dry_run:
                        (folder / f"{name}.lock").unlink(missing_ok=True)
        return removed


def _since(folder: Path, name: str) -> str:
    """Since when the newest unfinished folder is being written, by the clock of its host."""
    parts = sorted(path.name for path in folder.glob(f"{name}.*.part"))
    return f" since {parts[-1].split('.')[1].partition('-')[0]}" if parts else ""


def linked_artifacts(outputs: Path, runs: Sequence[Path] = ()) -> set[Path]:
    """The store folders that run folders below `outputs`, and `runs` elsewhere, link to."""
    folders = [*outputs.glob("runs/*"), *outputs.glob("sweeps/*/*"), *outputs.glob("sweeps/*/stages/*"), *runs]
    patterns = ("*", "evaluation/*", "unlearning/*")
    links = (path for folder in folders for pattern in patterns for path in folder.glob(pattern))
    found = set()
    for link in filter(Path.is_symlink, links):
        target = link.resolve()
        found.add(target if target.is_dir() else target.parent)
    return found


def package_versions() -> dict[str, str]:
    """Of the packages that results may depend on, as far as they are installed."""
    found = {}
    for name in NOTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
