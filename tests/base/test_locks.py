"""Who gets a lease, when; each test with leases of a fraction of a second."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from rapidun.base import locks
from rapidun.base.errors import ConfigError
from rapidun.base.locks import Lease, Wait, lease_seconds, new_token
from rapidun.sweep.folder import SweepFolder, SweepLock


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPIDUN_LEASE_SECONDS", "0.4")


def seconds_until_acquired(path: Path, *, limit: float = 10) -> float:
    lease = Lease(path)
    start = time.monotonic()
    while not lease.try_acquire():
        assert time.monotonic() - start < limit, "never acquired"
        time.sleep(0.01)
    took = time.monotonic() - start
    assert lease.held()
    lease.release()
    assert not path.exists()
    return took


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    assert first.try_acquire()
    deadline = time.monotonic() + 1.2  # three leases: refreshing keeps it
    while time.monotonic() < deadline:
        assert not second.try_acquire()
        time.sleep(0.02)
    assert first.held()
    assert not second.held()
    assert second.holder().startswith(f"process {os.getpid()} on ")
    first.release()
    assert second.try_acquire()
    second.release()
    assert second.holder() == "another process"


def _hold(path: str) -> None:
    lease = Lease(Path(path))
    assert lease.try_acquire()
    time.sleep(60)
    lease.release()


@pytest.mark.parametrize(("stop", "least", "most"), [(signal.SIGKILL, 0.0, 0.4), (signal.SIGSTOP, 0.3, 5.0)])
def test_a_dead_holder_loses_at_once_and_a_suspended_one_later(
    tmp_path: Path, stop: signal.Signals, least: float, most: float
) -> None:
    path = tmp_path / "lease"
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(str(path),))
    holder.start()
    assert holder.pid is not None
    while not (path.is_file() and path.read_bytes().endswith(b"\n")):
        time.sleep(0.01)
    os.kill(holder.pid, stop)
    if stop is signal.SIGKILL:
        holder.join()
    assert least <= seconds_until_acquired(path) <= most
    holder.kill()
    holder.join()


def marker(host: str, *, duration: float = 0.4) -> str:
    return f"filelock/2\npid=1\nhost={host}\nmode=lease\ntoken={'0' * 32}\nduration={duration}\n"


@pytest.mark.parametrize("text", [marker("elsewhere"), "", "filelock/2\npid=1\nhost=elsewhere\nmode=exclusive\n"])
def test_markers_of_the_dead_elsewhere_run_out(tmp_path: Path, text: str) -> None:
    """Another host's holder that died, one that died before it wrote its name, one of a kind that never expires."""
    path = tmp_path / "lease"
    path.write_text(text)
    assert 0.3 < seconds_until_acquired(path) < 5


def test_a_marker_that_is_clearly_old_goes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    path.write_text(marker("elsewhere"))
    os.utime(path, times=(time.time() - 5, time.time() - 5))
    assert seconds_until_acquired(path) < 0.3


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_live_holder_keeps_its_lease_whatever_the_clock_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A contender whose clock is hours ahead (or behind) sees a marker that seems hours old and is refreshed."""
    path = tmp_path / "lease"
    path.write_text(marker("elsewhere"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    contender = Lease(path)
    for _ in range(5):
        path.touch()  # the holder's sign of life
        assert not contender.try_acquire()
        time.sleep(0.1)
    assert [file.name for file in tmp_path.iterdir()] == ["lease"]


def test_of_two_drivers_of_one_sweep_one_is_refused(tmp_path: Path) -> None:
    """The second names the first and does nothing; when the first is done, another may."""
    folder = SweepFolder(tmp_path / "outputs" / "sweeps" / "s")
    with SweepLock(folder):
        alone = r"for this process alone, but process \d+ on .* drives it"
        with pytest.raises(ConfigError, match=alone), SweepLock(folder):
            raise AssertionError("two drive")
        assert (folder.path / "driver.lease").is_file()
    with SweepLock(folder):
        pass


def test_a_filesystem_that_cannot_exchange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: filelock then leaves an expired marker where it is."""
    util = pytest.importorskip("filelock._soft")
    if not hasattr(util, "exchange_names"):
        pytest.skip("this filelock exchanges no names")
    monkeypatch.setattr(util, "exchange_names", lambda *names: False)
    path = tmp_path / "lease"
    path.write_text(marker("elsewhere"))
    assert 0.3 < seconds_until_acquired(path) < 5


def test_a_lost_lease_is_known_and_the_successor_keeps_its_own(tmp_path: Path) -> None:
    first, second = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    assert first.try_acquire()
    first.path.unlink()
    assert not first.held()
    assert second.try_acquire()
    assert not first.held()
    first.release()
    assert second.held()
    second.release()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_lease_seconds_are_checked(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RAPIDUN_LEASE_SECONDS", value)
    with pytest.raises(ConfigError, match="RAPIDUN_LEASE_SECONDS: need seconds > 0, got"):
        lease_seconds()
    monkeypatch.delenv("RAPIDUN_LEASE_SECONDS")
    assert lease_seconds() == locks.LEASE_SECONDS


def test_holders_must_agree_on_the_length(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text(marker("elsewhere", duration=7.5))
    with pytest.raises(ConfigError, match=r"need the same value in every process of a store, got 0\.4 here"):
        Lease(tmp_path / "lease").try_acquire()


def test_tokens_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = []
    for moment in [time.gmtime(second) for second in (0, 86_400, 1_800_000_000)]:
        monkeypatch.setattr(time, "gmtime", lambda moment=moment: moment)
        tokens.append(new_token())
    assert tokens == sorted(tokens)
    assert tokens[0].startswith("19700101T000000Z-")


def test_a_wait_is_told_once_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    lines: list[str] = []
    wait = Wait("poison 01", lines.append)
    wait.pause(lambda: "process 1 on a makes it")
    wait.end()
    assert lines == [], "too short for a line"
    while clock[0] < 60:
        wait.pause(lambda: "process 1 on a makes it")
    wait.end()
    assert lines == ["waiting for poison 01: process 1 on a makes it", f"waited {clock[0]:.1f} s for poison 01"]
