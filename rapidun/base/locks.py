"""A lease on a file: who should be working, across hosts on one filesystem, as far as anybody can know.

A holder refreshes its lease from a thread. One that died on this host loses it at once; one that stopped refreshing
(it died on another host, or is suspended) loses it when the lease has run out. A suspended holder may wake up and
believe that it still holds it, so whatever a lease guards has to be right without it: two holders may waste time,
never data.
"""

import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from rapidun.base import clock
from rapidun.base.errors import ConfigError
from rapidun.base.files import writing

LEASE_SECONDS = 60.0
# a marker this many leases old by the file system's clock is abandoned
CLEARLY_OLD = 10
# between making a marker and filling it lies a moment: an empty one this old has no writer any more
EMPTY_SECONDS = 5.0
LONGEST_PAUSE = 2.0
# of a run folder
RUN_LEASE = "run.lease"
# Linux gives the first namespace of process numbers this inode
INITIAL_NAMESPACE = 0xEFFFFFFC
# shorter waits are not worth a line
NOTICE_AFTER = 1.0


def lease_seconds() -> float:
    """Seconds without a sign of life after which a holder counts as gone; RAPIDUN_LEASE_SECONDS changes it.

    Raises: ConfigError if the variable is no positive number.
    """
    text = os.environ.get("RAPIDUN_LEASE_SECONDS", str(LEASE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"RAPIDUN_LEASE_SECONDS: need seconds > 0, got {text!r}. Change it, or unset it for 60")
    return seconds


def new_token() -> str:
    """Names one holder among all hosts; tokens sort by the time they were made."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"


class Lease:
    """filelock.SoftFileLease, and what it leaves to its user: markers that it never takes over.

    It does not take one over where the filesystem cannot exchange two names (NFS): those go when nobody has touched
    them for longer than a lease. Nor an empty one (its writer died between making and filling it): those go after
    EMPTY_SECONDS.
    """

    def __init__(self, path: Path) -> None:
        from filelock import SoftFileLease

        self.path = path
        self.seconds = lease_seconds()
        self._lease = SoftFileLease(str(path), lease_duration=self.seconds, heartbeat_interval=self.seconds / 3)
        # the marker as it was last seen, and since when, on this process's monotonic clock
        self._seen: tuple[tuple[int, int], float] | None = None

    def try_acquire(self) -> bool:
        """Take the lease if nobody has it, or only a holder that is gone.

        Raises: ConfigError if its holder works with another RAPIDUN_LEASE_SECONDS.
        """
        from filelock import LeaseSettingsMismatch, Timeout

        for clear in (True, False):
            try:
                # filelock writes into an open file, and what fails then names none
                with writing(self.path):
                    self._lease.acquire(timeout=0)
                return True
            except Timeout:
                if not (clear and self._clear_abandoned()):
                    return False
            except LeaseSettingsMismatch as error:
                if not (clear and self._clear_abandoned()):
                    raise ConfigError(
                        "RAPIDUN_LEASE_SECONDS: need the same value in every process of a store, got "
                        f"{self.seconds:g} here; {error}"
                    ) from None
        return False

    def _clear_abandoned(self) -> bool:
        """Remove the marker if it shows no sign of life; whether it did."""
        marker = self.mark()
        if marker is None:
            return True
        now = time.monotonic()
        if self._seen is None or self._seen[0] != marker:
            self._seen = (marker, now)
        # filelock takes those over that it can after one lease
        most, clearly = self.seconds * 4 / 3, self.seconds * CLEARLY_OLD
        if self.is_empty():
            most = clearly = min(self.seconds, EMPTY_SECONDS)
        if now - self._seen[1] <= most and not self._is_old(marker[1] / 1e9, clearly):
            return False
        if self.mark() == marker:
            self.path.unlink(missing_ok=True)
        return True

    def _is_old(self, written: float, seconds: float) -> bool:
        """Whether a marker was last refreshed so long ago by the clock that gave it its time, the file system's.

        This host's clock may be hours ahead of it, and the marker's holder alive.
        """
        if time.time() - written < seconds:
            return False
        ahead = clock.ahead(self.path.parent)
        # where nothing can be written it is not taken over either
        return ahead is not None and time.time() + ahead - written >= seconds

    def is_empty(self) -> bool:
        """Whether the marker names nobody: its writer is between making and filling it, or died there."""
        try:
            # opened, which asks a file server anew
            return self.path.read_bytes() == b""
        except OSError:
            return False

    def mark(self) -> tuple[int, int] | None:
        """What identifies the marker and its last refresh, (inode, modification time in ns); None without one."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def held(self) -> bool:
        """Whether the marker is still ours: somebody may have taken it while this process was suspended."""
        owner = self._lease.owner
        return self._lease.is_locked and owner is not None and owner.token == self._lease.token

    def taken_over(self) -> bool:
        """Whether another process holds what this one took; a marker that was only deleted is nobody's."""
        owner = self._lease.owner
        return owner is not None and owner.token != self._lease.token

    def holder(self) -> str:
        """Who has it, for a message."""
        owner = self._lease.owner
        if owner is None and self.is_empty():
            return f"a process that has not written its name into {self.path.name}"
        return "another process" if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"

    def holder_is_here(self) -> bool:
        """Whether its holder is a process of this host, which was asked for and is alive."""
        owner = self._lease.owner
        return owner is not None and owner.hostname == _host_name()

    def seems_held(self) -> bool:
        """Whether somebody has it, as far as looking tells; nothing is taken or changed."""
        marker, owner = self.mark(), self._lease.owner
        if marker is None or time.time() - marker[1] / 1e9 > self.seconds * 4 / 3:
            return False
        if owner is None or owner.hostname != _host_name():
            return True
        try:
            os.kill(owner.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            # alive, and another user's
            return True
        return True

    def release(self) -> None:
        """Give it back; a marker that became somebody else's stays."""
        self._lease.release()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def take_folder(folder: Path, *, waits: bool, tell: Callable[[str], None]) -> Lease:
    """The lease on a run folder, `run.lease` in it; one of a process that is gone is taken over.

    Whether a holder on another host lives shows when it refreshes its lease: until then this waits.

    Args: waits: for a live holder to be done. tell: gets a line for a wait.
    Raises: ConfigError if a live process holds it and `waits` is not set; OSError if it cannot be written.
    """
    lease = Lease(folder / RUN_LEASE)
    wait = Wait(str(folder), tell)
    first = None
    while not lease.try_acquire():
        mark = lease.mark()
        first = first or mark
        if not waits and (lease.holder_is_here() or mark != first):
            raise ConfigError(
                f"run_dir: need {folder} for this process alone, but {lease.holder()} works in it (this is process "
                f"{os.getpid()}). Wait for its end, or pass another run_dir=..."
            )
        wait.pause(lambda: f"{lease.holder()} works in it")
    wait.end()
    return lease


def _host_name() -> str:
    """As filelock notes it in a lease: processes of another container count as another host's."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = INITIAL_NAMESPACE
    return socket.gethostname() + ("" if namespace == INITIAL_NAMESPACE else f"?pidns-{namespace:x}")


class Wait:
    """The pauses of one wait for another process, growing and uneven, so that many do not ask at the same moment.

    Args:
        what: what is waited for. tell: gets one line when the wait has become worth one, and one when it is over.
    """

    def __init__(self, what: str, tell: Callable[[str], None] | None) -> None:
        self.what = what
        self.tell = tell
        self.told = False
        self._start: float | None = None
        self._pause = 0.02

    @property
    def seconds(self) -> float:
        """How long this wait has been, 0 before its first pause."""
        return 0.0 if self._start is None else time.monotonic() - self._start

    def pause(self, describe: Callable[[], str]) -> None:
        """Sleep a little; `describe()` says who is waited for, and is called once."""
        if self._start is None:
            self._start = time.monotonic()
        if self.tell is not None and not self.told and self.seconds >= NOTICE_AFTER:
            self.told = True
            self.tell(f"waiting for {self.what}: {describe()}")
        time.sleep(self._pause * random.uniform(0.5, 1.5))
        self._pause = min(self._pause * 1.5, LONGEST_PAUSE)

    def end(self) -> None:
        """Say how long it was, if it was announced."""
        if self.tell is not None and self.told:
            self.tell(f"waited {self.seconds:.1f} s for {self.what}")
