"""Checkpoints that a kill cannot leave half-written: a marker, written last, says that one is complete."""

import shutil
from pathlib import Path

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, sync

MARKER = "rapidun.json"


def newest_checkpoint(work: Path, *, identity: str) -> Path | None:
    """The complete checkpoint with most steps, after every other kind was deleted."""
    usable = []
    for folder in all_checkpoints(work):
        try:
            good = read_json(folder / MARKER)["identity"] == identity
        except (ArtifactError, KeyError, TypeError):
            good = False
        if good:
            usable.append(folder)
        else:
            remove_checkpoint(folder)
    return usable[-1] if usable else None


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
