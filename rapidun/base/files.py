"""Reading and writing whole files so that a reader never meets a half-written one."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.parts import part_of
from rapidun.base.slow import Slow

CHECK = "check"
# from this size on a file's hash takes long enough to say how far it is; read in pieces then
LARGE_BYTES, PIECE_BYTES = 1 << 30, 1 << 24
# no JSON, no text, a number of more digits than Python reads, brackets deeper than it follows
UNREADABLE = (ValueError, RecursionError)


@contextmanager
def writing(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Note on an exception from within which file was to be written, of how many bytes, for base/limits.py to tell.

    The innermost note stays.
    """
    try:
        yield
    except Exception as error:
        if not hasattr(error, "rapidun_writing"):
            error.rapidun_writing = (path, num_bytes)  # type: ignore[attr-defined]
        raise


def write_atomic(path: Path, write: Callable[[Path], object], *, num_bytes: int | None = None) -> None:
    """Let `write` fill a `.part` file beside `path`, flush it to disk, then rename it into place.

    Args: num_bytes: how many `write` writes, where that is known, for a message if they find no room.
    """
    part = part_of(path)
    with writing(path, num_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            sync(part)
            os.replace(part, path)
        finally:
            # a disk that became read-only keeps it: the fault that is told is the first one
            with suppress(OSError):
                part.unlink(missing_ok=True)


def link_to(link: Path, target: Path) -> None:
    """Let `link` be a relative link to `target`, whatever it was; one that is already stays as it is."""
    goal = os.path.relpath(target.resolve(), link.parent.resolve())
    if link.is_symlink() and os.readlink(link) == goal:
        return
    # named as every unfinished file: what a process that was killed leaves is swept at the next start
    part = part_of(link)
    try:
        os.symlink(goal, part)
        os.replace(part, link)
    except BaseException:
        # where nothing can be removed either, it stays until then
        with suppress(OSError):
            part.unlink()
        raise


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 text with `\\n` line ends, atomically.

    Args: private: for the owner alone (mode 0600), where the text must hold a secret to be of use.
    """

    data = text.encode()

    def write(part: Path) -> None:
        if private:
            part.touch(mode=0o600)
        part.write_bytes(data)

    write_atomic(path, write, num_bytes=len(data))


def write_json(path: Path, value: object, *, private: bool = False) -> None:
    """Write indented JSON, atomically; NaN and infinity are refused, since JSON has none. `private`: see write_text."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", private=private)


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON object a line, atomically."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    write_atomic(path, write)


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write torch tensors as safetensors, atomically."""
    from safetensors.torch import save_file

    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    write_atomic(path, lambda part: save_file(tensors, str(part)), num_bytes=num_bytes)


def read_json(path: Path) -> Any:
    """Read one JSON file that this software wrote.

    Raises: ArtifactError if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: need this file, found none") from None
    except UNREADABLE as error:
        raise ArtifactError(f"{path}: need JSON, got a damaged file ({error}). Delete it and run again") from None


def read_jsonl(path: Path) -> list[Any]:
    """Read a JSONL file that this software wrote.

    Raises: ArtifactError if the file is missing or damaged, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: need this file, found none") from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: need JSON objects, got a damaged file ({error})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except UNREADABLE as error:
            raise ArtifactError(f"{path}:{number}: need one JSON object, got a damaged line ({error})") from None
    return rows


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; of a large one it is said how far that is."""
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        if total < LARGE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, done = hashlib.sha256(), 0
        slow = Slow(f"rapidun: reads {path} ({total / 1e9:.1f} GB) for its hash")
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            done += len(piece)
            slow(done, total)
        return digest.hexdigest()


def seal_of(folder: Path, *names: str) -> dict[str, str]:
    """SHA-256 of each file below a folder, or of those named, by its name from there."""
    files = [folder / name for name in names] or sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def broken(folder: Path, seal: Mapping[str, str]) -> list[str]:
    """The files below a folder that are not as `seal_of` found them, or not there."""
    return [
        name for name, digest in seal.items() if not (folder / name).is_file() or sha256_file(folder / name) != digest
    ]


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """An object as it will be read back, with a checksum over itself."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    return {**plain, CHECK: sha256_json(plain)}


def fits_its_seal(value: Mapping[str, Any]) -> bool:
    """Whether an object is as `sealed` made it; one without a checksum, of an earlier version, is taken as it is."""
    rest = {key: part for key, part in value.items() if key != CHECK}
    try:
        return CHECK not in value or value[CHECK] == sha256_json(rest)
    except UNREADABLE:  # NaN: `sealed` writes none
        return False


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a value's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there and may be looked at."""
    folder = folder.absolute()
    # unlike Path.exists it is false for too long a name, and where the folder above may not be looked into
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))
