"""A disk that fails at the n-th change of a run: one message, the status says so, a rerun ends bit-identical."""

import errno
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.machine import RUN, Done, Fault, Machine, Whole, command, leftovers, results

# points of the slow tests
POINTS = 48
# in as many tests every change is tried
STRETCHES = 40
DISKS = [(Fault.once, errno.ENOSPC), (Fault.full, errno.ENOSPC), (Fault.read_only, errno.EROFS)]


def status_of(place: Path) -> dict[str, Any] | None:
    path = place / "run" / "status.json"
    return json.loads(path.read_text()) if path.is_file() else None


def check_message(done: Done, place: Path, before: dict[str, Any] | None, fault: Fault) -> None:
    """One message of the disk that names the place, no traceback, and a status that says so too.

    Args: before: status.json before the run, which may stand where not even the folder's lease could be written.
        fault: what the disk did.
    """
    told = [line for line in done.err.split("\n") if line.startswith("rapidun: ")]
    assert "Traceback" not in done.err + done.out, done.err
    assert done.status == 2, (done.status, done.err, done.out)
    assert len(told) == 1, done.err
    assert any(words in told[0] for words in ("need room for", "need a folder that can be written")), told
    assert str(place) in told[0], told
    found = status_of(place)
    if fault is Fault.read_only and found is not None and found["state"] == "running":
        # nothing can be written any more, not even over what is there: that is said
        assert "status.json" in done.err + done.out, done.err + done.out
    elif found is not None and found != before:
        assert found["state"] == "failed", found["state"]
        assert found["error"]["message"].startswith("MachineError: "), found["error"]["message"]


def fail(machine: Machine, place: Path, at: int, fault: Fault, error: int = errno.ENOSPC) -> bool:
    """Let the run's at-th change fail and look at what it says; whether it failed."""
    before = status_of(place)
    done = machine.run(command(place), below=place, at=at, fault=fault, error=error)
    if done.status:
        check_message(done, place, before, fault)
        return True
    # a sign of life, or the report, that could not be written; or the run was over by then
    assert done.count is not None
    assert fault is Fault.once or at > done.count or "report.html was not written" in done.out, done.out
    return False


def goes_on(machine: Machine, place: Path, whole: Whole) -> None:
    """Run once more, undisturbed: the results are as if nothing had been."""
    done = machine.run(command(place), below=place)
    assert done.status == 0, done.err
    assert results(place) == whole[0]
    if leftovers(place):
        # the disk failed while something was to be removed
        prune = ["store", "prune", "--store", str(place / "store"), "--outputs", str(place)]
        assert machine.run(prune, below=place).status == 0
        # a run that found its poisoned model has not asked for the model before it, which nobody else uses either
        asked = (place / "run" / "model").is_symlink()
        kept = {name: found for name, found in whole[0].items() if asked or not name.startswith("store/model/")}
        assert {name: found for name, found in results(place).items() if name in kept} == kept
    assert leftovers(place) == []
    assert json.loads((place / "run" / "status.json").read_text())["state"] == "done"


def test_full_at_a_dozen_points_one_after_the_other(machine: Machine, whole: Whole) -> None:
    """Each attempt goes on where the one before it failed."""
    place, rng = machine.root / "dozen", random.Random(16)
    faults = [Fault.once, Fault.full]
    failed = 0
    for _ in range(12):
        if fail(machine, place, rng.randrange(1, whole[1] // 4), rng.choice(faults)):
            failed += 1
        else:
            # it came to its end: what is reused has few changes left to fail
            shutil.rmtree(place)
    assert failed >= 10
    goes_on(machine, place, whole)


def test_a_report_that_finds_no_room_is_a_warning(machine: Machine, whole: Whole) -> None:
    """The run is done, its results are there, and its report can be written later."""
    place = machine.root / "dozen"
    # the file's name is the start of that of the unfinished one: only what the report writes is counted, and fails
    page = place / "run" / "report.html"
    done = machine.run(command(place), below=page)
    assert done.status == 0 and page.is_file() and done.count
    # opened, written, flushed, renamed
    assert done.count >= 4
    for at in (1, done.count):
        again = machine.run(command(place), below=page, at=at, fault=Fault.full)
        assert again.status == 0, again.err
        assert "report.html was not written: run_dir: need room for" in again.out
    assert json.loads((place / "run" / "status.json").read_text())["state"] == "done"
    assert machine.run(["report", str(place / "run")], below=place).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", range(POINTS))
def test_full_at_a_point(machine: Machine, whole: Whole, number: int) -> None:
    """One point in each of 48 stretches of a run, once or from then on, of a disk that is full or became read-only."""
    rng = random.Random(number)
    stretch = whole[1] / POINTS
    at = 1 + int(stretch * number + rng.random() * stretch)
    place = machine.root / f"point{number}"
    fault, error = DISKS[number % 3]
    fail(machine, place, at, fault, error)
    goes_on(machine, place, whole)


@pytest.mark.walk
@pytest.mark.parametrize("number", range(STRETCHES))
def test_every_change_of_a_run(machine: Machine, whole: Whole, number: int) -> None:
    """Each change of the disk that a run makes fails once, of disks in turn; faults of a stretch are told together."""
    place, found, tried = machine.root / f"walk{number}", [], 0
    for at in range(1 + whole[1] * number // STRETCHES, 1 + whole[1] * (number + 1) // STRETCHES):
        fault, error = DISKS[at % 3]
        try:
            fail(machine, place, at, fault, error)
            goes_on(machine, place, whole)
        except (AssertionError, ValueError, OSError) as wrong:
            found.append(f"change {at}, {fault.name}: {wrong}")
        tried += 1
        shutil.rmtree(place, ignore_errors=True)
    assert tried >= whole[1] // STRETCHES
    assert not found, f"{len(found)} of {tried}:\n" + "\n".join(found)


@pytest.fixture
def read_only_store(machine: Machine, whole: Whole) -> Iterator[Path]:
    """The store of the whole run, where it can only be read."""
    place = machine.root / "read-only"
    place.mkdir()
    source = str(machine.root / "whole" / "store")
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", source, str(place)], check=False).returncode:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)
    place.rmdir()


def test_a_store_that_can_only_be_read(machine: Machine, whole: Whole, read_only_store: Path) -> None:
    """What is there is used, and prune's ignorance is said; what is to be made is refused in one message."""
    place = machine.root / "reader"
    argv = [*RUN, f"store_dir={read_only_store}"]
    done = machine.run([*argv, f"run_dir={place / 'run'}"], below=place)
    assert done.status == 0, done.err
    assert "rapidun store prune there will not know of" in done.out.replace("\n", " ")
    assert results(place)["run/result.json"] == whole[0]["run/result.json"]
    refused = machine.run([*argv, f"run_dir={place / 'other'}", "mapping.tau_f=0.123", "mapping=rapidun"], below=place)
    assert refused.status == 2
    assert re.search(rf"^rapidun: store_dir: need a folder that can be written, got {read_only_store}", refused.err)
    assert len([line for line in refused.err.split("\n") if line.startswith("rapidun: ")]) == 1
    assert json.loads((place / "other" / "status.json").read_text())["state"] == "failed"


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every user may write to."""
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        os.chmod(made, 0o777)
        yield Path(made)


LIMITS: list[dict[str, int]] = [
    {"NOFILE": 20}, {"NOFILE": 64}, {"FSIZE": 4096}, {"AS": 1 << 22}, {"AS": 1 << 26}, {"NPROC": 1}, {"NPROC": 3}
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_limits_of_the_shell(machine: Machine, whole: Whole, limits: dict[str, int], open_place: Path) -> None:
    """`ulimit -n`, `-f`, `-v` (above what the process has), `-u`: one message, and without it the run goes on."""
    place = machine.root / "".join(f"{name}{most}" for name, most in limits.items())
    if "NPROC" in limits:
        if os.geteuid() != 0:
            pytest.skip("becoming another user needs root")
        # that user may not look into pytest's folders
        place = open_place
    done = machine.run(command(place), below=place, limits=limits)
    assert done.status or "NPROC" not in limits or limits["NPROC"] > 1
    if done.status:
        told = [line for line in done.err.split("\n") if line.startswith("rapidun: ")]
        assert done.status == 2 and len(told) == 1 and "Traceback" not in done.err + done.out, done.err
        words = {
            "NOFILE": "open files: need more than",
            "FSIZE": "File too large",
            "AS": "memory: need",
            "NPROC": "process or thread",
        }
        assert words[next(iter(limits))] in told[0], told
    goes_on(machine, place, whole)
