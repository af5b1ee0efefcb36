"""Where runs write: room, permission, and whether the store's file system does what the store builds on."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from rapidun.base.errors import RapidunError
from rapidun.base.files import existing
from rapidun.base.locks import Lease
from rapidun.base.text import lines_of, short_message
from rapidun.cli.doctor.findings import Findings
from rapidun.cli.doctor.request import Request

GIB = 2**30
# a store of the tiny model's stages, with room to spare
LITTLE_ROOM = 1 * GIB
# leases go by the file system's clock where their holder is on another machine
CLOCK_S = 5.0
MOUNTS = Path("/proc/self/mounts")


def look_at_storage(request: Request) -> Findings:
    """The folders that the configuration writes to; what is tried there is taken away again."""
    found = Findings()
    run_dir = request.cfgs[0].run_dir
    outputs = Path(run_dir).expanduser() if run_dir else Path("outputs")
    for cfg in request.distinct(lambda cfg: cfg.store_dir):
        store = Path(cfg.store_dir).expanduser()
        if _room(found, "store", store, remedy="pass store_dir=DIR"):
            _locks(found, existing(store))
    if existing(outputs) != existing(store):
        _room(found, "outputs", outputs, remedy="pass run_dir=DIR, or start in another folder")
    return found


def _room(found: Findings, name: str, folder: Path, *, remedy: str) -> bool:
    """Note free space and kind of file system; whether anything can be written."""
    place = existing(folder)
    made = "" if place == folder.absolute() else " (to be made)"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found.fact(name, f"{folder}{made}: cannot be written")
        why = "is no folder" if not place.is_dir() else "is not writable"
        found.problem("every run", f"{place} {why}", remedy, needed=True)
        return False
    free = shutil.disk_usage(place).free
    found.fact(name, f"{folder}{made}: {free / GIB:.1f} GiB free, {file_system(place)}")
    if free < LITTLE_ROOM:
        found.problem(
            "runs that keep more than the tiny model", f"{free / GIB:.1f} GiB free at {place}",
            f"make room (rapidun store prune), or {remedy}", needed=free < LITTLE_ROOM / 10,
        )  # fmt: skip
    return True


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, as the kernel names it."""
    try:
        text = MOUNTS.read_text(encoding="utf-8")
    except OSError:
        return "file system unknown"
    mounts = [line.split()[1:3] for line in lines_of(text)]
    path = str(folder.resolve())
    inside = [(place, kind) for place, kind in mounts if place == "/" or path == place or path.startswith(place + "/")]
    return max(inside, key=lambda mount: len(mount[0]))[1] if inside else "file system unknown"


def _locks(found: Findings, folder: Path) -> None:
    """Try what the store does: rename a folder into place, and keep a second process out by a lease."""
    try:
        with tempfile.TemporaryDirectory(prefix=".rapidun-doctor-", dir=folder) as name:
            place = Path(name)
            (place / "a.part").mkdir()
            (place / "a.part" / "file").write_text("x", encoding="utf-8")
            behind = time.time() - (place / "a.part" / "file").stat().st_mtime
            os.rename(place / "a.part", place / "a")
            first, second = Lease(place / "a.lock"), Lease(place / "a.lock")
            taken = first.try_acquire()
            kept_out = not second.try_acquire()
            first.release()
            freed = second.try_acquire()
            second.release()
    except (OSError, RapidunError, RuntimeError, ValueError) as error:
        found.fact("file locks", f"do not work: {short_message(error)}")
        found.problem(
            "every run", f"the store cannot be written ({short_message(error)})", "pass store_dir=DIR", needed=True
        )
        return
    works = taken and kept_out and freed
    found.fact("file locks", "work" if works else "do not work")
    if not works:
        found.problem(
            "several processes on one store", "a lease on a file keeps nobody out here, so that they make things twice "
            "(results stay right)", "pass store_dir=DIR on another file system",
        )  # fmt: skip
    if abs(behind) > CLOCK_S:
        found.problem(
            "several machines on one store", f"the file system's clock is {abs(behind):.0f} s off this machine's",
            "set the clocks (NTP), or RAPIDUN_LEASE_SECONDS well above that on all of them",
        )  # fmt: skip
