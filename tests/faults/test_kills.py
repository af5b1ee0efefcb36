"""SIGKILL at the n-th change of the disk, in runs, reports, index builds and sweeps: rerun, they end bit-identical.

What a dead process leaves is the disk as it was between two changes, so that kills at changes are all kills there are
(a machine that loses its power, and with it what was not flushed, is another matter).
"""

import hashlib
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.machine import RUN, Fault, Machine, Whole, command, leftovers, results

# kills of one trial: each attempt goes on where the one before it was killed
CHAIN = 5


class Job:
    """A command, and what it leaves: compared with what an undisturbed one leaves."""

    def __init__(self, machine: Machine, argv: Callable[[Path], list[str]], look: Callable[[Path], Any]) -> None:
        self.machine, self.argv, self.look = machine, argv, look

    def run(self, place: Path, *, at: int = 0) -> int | None:
        """Run it; how often it changed the disk, None where it was killed."""
        place.mkdir(exist_ok=True)
        done = self.machine.run(self.argv(place), below=place, at=at, fault=Fault.killed, cwd=place)
        assert done.status in ((0, -signal.SIGKILL) if at else (0,)), done.err
        return done.count


def survives(job: Job, name: str, *, kills: int, seed: int) -> int:
    """Kill it several times in a row, then let it end; the kills that hit."""
    whole, place = job.machine.root / f"whole-{name}", job.machine.root / f"{name}-{seed}"
    if not whole.is_dir():
        (job.machine.root / f"count-{name}").write_text(str(job.run(whole)))
    count = int((job.machine.root / f"count-{name}").read_text())
    rng = random.Random(f"{name} {seed}")
    hit = sum(job.run(place, at=rng.randrange(1, max(3, count // (kills if kills > 1 else 1)))) is None
              for _ in range(kills))  # fmt: skip
    job.run(place)
    assert job.look(place) == job.look(whole)
    assert [left for left in leftovers(place) if left.startswith("store/")] == []
    return hit


def _run(place: Path) -> list[str]:
    return command(place)


def _sweep(place: Path) -> list[str]:
    chosen = ["-m", *RUN, "hydra/launcher=basic", "sweep.name=swept", f"store_dir={place / 'store'}"]
    return [*chosen, "mapping.tau_f=0.3,0.7", "stages=[data,poison,influence,mapping]", "mapping=rapidun"]


def _swept(place: Path) -> dict[str, Any]:
    cells = sorted(path.parent for path in (place / "outputs").glob("sweeps/swept/*/result.json"))
    assert len(cells) == 2
    return {**results(place), **{f"{cell.name}/{key}": value for cell in cells for key, value in results(cell).items()}}


def _bytes(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        # what a kill left half written is no result
        if path.is_file() and path.suffix not in (".part", ".whole") and not {"run", "store"} & set(path.parts)
    }


def _index(machine: Machine) -> Callable[[Path], list[str]]:
    made = machine.root / "whole"
    model, rows = made / "run" / "model" / "model", made / "run" / "data" / "forget.jsonl"

    def argv(place: Path) -> list[str]:
        chosen = ["--rows", str(rows), "--model", str(model), "--out", str(place / "index")]
        return ["index", "build", *chosen, "--k", "64", "--shard-rows", "2"]

    return argv


@pytest.fixture(scope="module")
def jobs(machine: Machine, whole: Whole) -> dict[str, Job]:
    run = Job(machine, _run, results)
    if not (machine.root / "whole-run").exists():
        (machine.root / "whole-run").symlink_to(machine.root / "whole")
        (machine.root / "count-run").write_text(str(whole[1]))
    made = machine.root / "whole" / "run"

    def report(place: Path) -> list[str]:
        return ["report", str(made), "--html", str(place / "page.html"), "--csv", str(place / "table.csv"),
                "--md", str(place / "text.md")]  # fmt: skip

    return {
        "run": run,
        "report": Job(machine, report, _bytes),
        "index": Job(machine, _index(machine), _bytes),
        "sweep": Job(machine, _sweep, _swept),
    }


@pytest.mark.parametrize(("name", "kills"), [("run", 3), ("report", 1), ("index", 2)])
def test_a_few_kills(jobs: dict[str, Job], name: str, kills: int) -> None:
    assert survives(jobs[name], name, kills=kills, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 13))
def test_kills_of_a_run(jobs: dict[str, Job], seed: int) -> None:
    """60 kills in all stages."""
    assert survives(jobs["run"], "run", kills=CHAIN, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", ["report", "index", "sweep"])
def test_kills_of_other_commands(jobs: dict[str, Job], name: str, seed: int) -> None:
    """20 kills each of a report, an index build, and a sweep with the basic launcher."""
    assert survives(jobs[name], name, kills=CHAIN, seed=seed)


def terminated(machine: Machine, whole: Whole, name: str, *, times: int, seed: int) -> int:
    """SIGTERM at random changes of one run after the other: each says `interrupted` at once; the last one ends."""
    place, rng, hit = machine.root / name, random.Random(f"term {seed}"), 0
    for _ in range(times):
        at = rng.randrange(1, max(3, whole[1] // times))
        done = machine.run(command(place), below=place, at=at, fault=Fault.terminated)
        assert "Traceback" not in done.err + done.out, done.err
        found = place / "run" / "status.json"
        state = json.loads(found.read_text())["state"] if found.is_file() else ""
        if done.status == 0:  # it came too late, or amid the end
            assert state == "done"
            continue
        hit += 1
        # before the run took it over it is an end like any other
        assert done.status in (128 + signal.SIGTERM, -signal.SIGTERM), (done.status, done.err)
        if done.status > 0 and state:
            assert state == "interrupted", (at, done.err)
            assert "rapidun: stopped (signal SIGTERM): " in done.err
    assert machine.run(command(place), below=place).status == 0
    assert results(place) == whole[0]
    assert [left for left in leftovers(place) if left.startswith("store/")] == []
    return hit


def test_sigterm_is_an_interrupt(machine: Machine, whole: Whole) -> None:
    assert terminated(machine, whole, "term-0", times=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_sigterm_at_any_change(machine: Machine, whole: Whole, seed: int) -> None:
    """20 of them."""
    assert terminated(machine, whole, f"term-{seed}", times=CHAIN, seed=seed)
