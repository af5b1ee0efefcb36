"""A disk that fails at the n-th change of a run: one message, the status says so, a rerun ends bit-identical."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults.machine import Done, Fault, Machine, command, leftovers, results


@pytest.fixture(scope="module")
def whole(machine: Machine) -> tuple[dict[str, Any], int]:
    """The results of a run that nothing disturbs, and how often it changes the disk."""
    place = machine.root / "whole"
    done = machine.run(command(place), below=place)
    assert done.status == 0, done.err
    assert done.count
    assert leftovers(place) == []
    return results(place), done.count


def check_message(done: Done, place: Path) -> None:
    """One message of the disk, no traceback, and a status that does not say that the run goes on."""
    told = [line for line in done.err.split("\n") if line.startswith("rapidun: ")]
    assert "Traceback" not in done.err + done.out, done.err
    assert done.status == 2, (done.status, done.err, done.out)
    assert len(told) == 1, done.err
    assert "need room for" in told[0] or "need a folder that can be written" in told[0], told
    assert str(place) in told[0], told
    status = place / "run" / "status.json"
    if status.is_file():
        found = json.loads(status.read_text())
        assert found["state"] == "failed", found["state"]
        assert "MachineError" in found["error"]["message"]


def fail(machine: Machine, place: Path, at: int, fault: Fault) -> bool:
    """Let the run's at-th change fail and look at what it says; whether it failed."""
    done = machine.run(command(place), below=place, at=at, fault=fault)
    if done.status:
        check_message(done, place)
        return True
    # a sign of life, or the report, that could not be written; or the run was over by then
    assert done.count is not None
    assert fault is Fault.once or at > done.count or "report.html was not written" in done.out, done.out
    return False


def test_full_at_a_dozen_points_one_after_the_other(machine: Machine, whole: tuple[dict[str, Any], int]) -> None:
    """Each attempt goes on where the one before it failed; after twelve of them the results are as ever."""
    expected, count = whole
    place = machine.root / "dozen"
    rng = random.Random(16)
    failed = 0
    for _ in range(12):
        failed += fail(machine, place, rng.randrange(1, count // 4), rng.choice([Fault.once, Fault.full]))
    assert failed >= 10
    done = machine.run(command(place), below=place)
    assert done.status == 0, done.err
    assert results(place) == expected
    assert leftovers(place) == []
