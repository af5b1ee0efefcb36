"""Names of files that are being written: each says who writes it, so that what a killed process left can be told."""

import hashlib
import os
import re
import secrets
import socket
from functools import cache
from pathlib import Path

from rapidun.base.clock import age

NAME = re.compile(r".*\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.(part|whole)", re.DOTALL)
# as earlier versions and other processes of ours name them
ANY = re.compile(r".*\.(part|whole)", re.DOTALL)
# a file that nobody has written to for so long has no writer, whatever clock its host has
ABANDONED_SECONDS = 3600.0


def part_of(path: Path, *, ending: str = "part") -> Path:
    """A name beside `path` for this process alone: `<name>.<host>-<process>-<random>.part`."""
    return path.with_name(f"{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.{ending}")


def target_of(path: Path) -> Path:
    """The name that an unfinished file, or what stands below one, was to have; any other path as it is."""
    return Path(re.sub(r"\.[0-9a-f]{8}-[0-9]+-[0-9a-f]{8}\.(part|whole)(?=/|$)", "", str(path)))


def sweep_parts(*folders: Path) -> list[Path]:
    """Remove the unfinished files of writers that are gone, in these folders (not below them); a live one's stay.

    A writer on this host is asked for; one on another host, or of an earlier version, is gone when its file has not
    been written to for ABANDONED_SECONDS.
    """
    removed = []
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                found = [Path(entry.path) for entry in entries if ANY.fullmatch(entry.name)]
        except OSError:
            continue  # no folder yet, or not ours to read
        for path in found:
            try:
                # the folder of an artifact under way is its lease's matter
                if not (path.is_dir() and not path.is_symlink()) and _is_left(path):
                    path.unlink()
                    removed.append(path)
            except OSError:
                continue  # another process was first, or it cannot be removed: nobody reads it
    return removed


def _is_left(path: Path) -> bool:
    """Whether nobody writes this file any more."""
    if age(path) > ABANDONED_SECONDS:
        return True
    writer = NAME.fullmatch(path.name)
    return writer is not None and writer[1] == _host() and not _is_alive(int(writer[2]))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@cache
def _host() -> str:
    """8 hex digits for this host since it was started, and this view of its process numbers (a container has its own).

    A name of an earlier start is another host's: its numbers mean nothing here.
    """
    words = [socket.gethostname()]
    for read in (_boot, _processes):
        try:
            words.append(read())
        except OSError:
            words.append("")
    return hashlib.sha256("\n".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _processes() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)
