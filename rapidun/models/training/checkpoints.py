"""Checkpoints that a kill cannot leave half-written: a marker, written last, says that one is complete.

The marker holds the hash of every file and a checksum over itself, so that what was damaged later is not gone on from.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import broken, fits_its_seal, read_json, seal_of, sealed, sync, write_json

MARKER = "rapidun.json"


def newest_checkpoint(work: Path, *, identity: str, tell: Callable[[str], None] = lambda line: None) -> Path | None:
    """The whole checkpoint with most steps; every other kind is deleted.

    Args: tell: gets a line for one that is damaged, naming the file, and what is gone on from instead.
    """
    damaged: list[str] = []
    for folder in reversed(all_checkpoints(work)):
        marker = _read(folder)
        # it was being written when its process died, or another training left it
        if marker is not None and marker.get("identity") == identity:
            fault = _fault(folder, marker)
            if not fault:
                for line in damaged:
                    tell(f"{line}. Training goes on from {folder.name}")
                for other in all_checkpoints(work):
                    if _identity(other) != identity:
                        remove_checkpoint(other)
                return folder
            damaged.append(fault)
        elif marker is None and (folder / MARKER).is_file():
            damaged.append(f"{folder / MARKER}: need what ends a checkpoint, got a damaged file")
        remove_checkpoint(folder)
    for line in damaged:
        tell(f"{line}. No other checkpoint is left: training begins anew")
    return None


def seal_checkpoint(folder: Path, marker: dict[str, Any]) -> None:
    """End a checkpoint: its files go to the disk, then their hashes and the marker.

    Args: marker: {"identity", "journal", ...}; files outside the folder that the checkpoint needs stand, with their
        hashes, in journal.beside, by their names from the work folder.
    """
    flush_files(folder)
    write_json(folder / MARKER, sealed({**marker, "files": seal_of(folder)}))
    sync(folder)
    sync(folder.parent)


def _read(folder: Path) -> dict[str, Any] | None:
    """The marker; None where there is none, or a damaged one."""
    try:
        found = read_json(folder / MARKER)
    except ArtifactError:
        return None
    has_shape = isinstance(found, dict) and isinstance(found.get("journal", {}), dict)
    return found if has_shape and fits_its_seal(found) else None


def _identity(folder: Path) -> object:
    marker = _read(folder)
    return None if marker is None else marker.get("identity")


def _fault(folder: Path, marker: dict[str, Any]) -> str:
    """What is damaged of a checkpoint; those of earlier versions have no hashes, and are taken as they are."""
    step = checkpoint_step(folder)
    if marker.get("step", step) != step:
        return f"{folder / MARKER}: need what ends {folder.name}, got that of step {marker['step']}"
    for place, seal in ((folder, marker.get("files")), (folder.parent, marker.get("journal", {}).get("beside"))):
        changed = broken(place, seal) if isinstance(seal, dict) else []
        if changed:
            return f"{place / changed[0]}: need the bytes that were written for {folder.name}, got others or none"
    return ""


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, its marker first: dying in between leaves one that is known to be incomplete."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def all_checkpoints(work: Path) -> list[Path]:
    found = [path for path in work.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """The optimiser step after which a checkpoint was saved."""
    return int(folder.name.removeprefix("checkpoint-"))


def flush_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
