"""How old a file is by the clock that gave it its time: a file server's may be hours from this host's."""

import os
import tempfile
import time
from pathlib import Path

# of seconds between the clocks what was measured so long ago is measured again
REMEMBERED_SECONDS = 60.0

# device -> seconds that its clock is ahead of this host's, when that was measured, and this host's clock then
_measured: dict[int, tuple[float, float, float]] = {}


def age(path: Path) -> float:
    """Seconds since a file was last written to; where its folder takes no probe, by this host's clock.

    Raises: OSError if there is no such file.
    """
    found = path.lstat()
    return max(0.0, time.time() + (_ahead(path.parent, found.st_dev) or 0.0) - found.st_mtime)


def ahead(folder: Path) -> float | None:
    """Seconds that the clock of a folder's file system is ahead of this host's; None where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            before = time.time()
            probe.write(b".")
            probe.flush()
            written = os.fstat(probe.fileno()).st_mtime
            after = time.time()
    except OSError:
        return None
    # within what the write took, and the file system's own grain, the clocks agree
    return 0.0 if before - 2.0 <= written <= after + 2.0 else written - after


def _ahead(folder: Path, device: int) -> float | None:
    now = time.monotonic()
    known = _measured.get(device)
    # not where this host's clock was set since
    if known and now - known[1] < REMEMBERED_SECONDS and abs(time.time() - now - known[2]) < 1.0:
        return known[0]
    found = ahead(folder)
    if found is not None:
        _measured[device] = (found, now, time.time() - now)
    return found
