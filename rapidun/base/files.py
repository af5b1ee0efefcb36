"""Reading and writing whole files so that a reader never meets a half-written one."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError


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
    # not the process id: two hosts may share one
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
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


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `\\n` line ends, atomically."""
    data = text.encode()
    write_atomic(path, lambda part: part.write_bytes(data), num_bytes=len(data))


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: need JSON, got a damaged file ({error}). Delete it and run again") from None


def read_jsonl(path: Path) -> list[Any]:
    """Read a JSONL file that this software wrote.

    Raises: ArtifactError if the file is missing or damaged, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: need this file, found none") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ArtifactError(f"{path}:{number}: need one JSON object, got a damaged line ({error})") from None
    return rows


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a value's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there and may be looked at."""
    folder = folder.absolute()
    # unlike Path.exists it is false for too long a name, and where the folder above may not be looked into
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))
