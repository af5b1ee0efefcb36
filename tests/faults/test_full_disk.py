"""A disk that fails at the n-th change of a run: one message, the status says so, a rerun ends bit-identical."""

import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults.machine import Done, Fault, Machine, command, leftovers, results

Whole = tuple[dict[str, Any], int]
# points of the slow walk
POINTS = 48


@pytest.fixture(scope="module")
def whole(machine: Machine) -> Whole:
    """The results of a run that nothing disturbs, and how often it changes the disk."""
    place = machine.root / "whole"
    done = machine.run(command(place), below=place)
    assert done.status == 0, done.err
    assert done.count
    assert leftovers(place) == []
    return results(place), done.count


def check_message(done: Done, place: Path) -> None:
    """One message of the disk that names the place, no traceback, and a status that says so too."""
    told = [line for line in done.err.split("\n") if line.startswith("rapidun: ")]
    assert "Traceback" not in done.err + done.out, done.err
    assert done.status == 2, (done.status, done.err, done.out)
    assert len(told) == 1, done.err
    assert any(words in told[0] for words in ("need room for", "need a folder that can be written")), told
    assert str(place) in told[0], told
    status = place / "run" / "status.json"
    if status.is_file():
        found = json.loads(status.read_text())
        assert found["state"] == "failed", found["state"]
        assert found["error"]["message"].startswith("MachineError: "), found["error"]["message"]


def fail(machine: Machine, place: Path, at: int, fault: Fault, error: int = errno.ENOSPC) -> bool:
    """Let the run's at-th change fail and look at what it says; whether it failed."""
    done = machine.run(command(place), below=place, at=at, fault=fault, error=error)
    if done.status:
        check_message(done, place)
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
    assert leftovers(place) == []
    assert json.loads((place / "run" / "status.json").read_text())["state"] == "done"


def test_full_at_a_dozen_points_one_after_the_other(machine: Machine, whole: Whole) -> None:
    """Each attempt goes on where the one before it failed."""
    place, rng = machine.root / "dozen", random.Random(16)
    faults = [Fault.once, Fault.full]
    failed = sum(fail(machine, place, rng.randrange(1, whole[1] // 4), rng.choice(faults)) for _ in range(12))
    assert failed >= 10
    goes_on(machine, place, whole)


def test_a_report_that_finds_no_room_is_a_warning(machine: Machine, whole: Whole) -> None:
    """The run is done, its results are there, and its report can be written later."""
    place = machine.root / "dozen"
    done = machine.run(command(place), below=place)
    assert done.status == 0 and done.count
    # the report is the last that a run writes: its file, its bytes, flushed, renamed, and what precedes them
    done = machine.run(command(place), below=place, at=done.count - 3, fault=Fault.full)
    assert done.status == 0, done.err
    assert "report.html was not written: run_dir: need room for" in done.out
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
    fault, error = [(Fault.once, errno.ENOSPC), (Fault.full, errno.ENOSPC), (Fault.read_only, errno.EROFS)][number % 3]
    fail(machine, place, at, fault, error)
    goes_on(machine, place, whole)
