"""A sweep in bad weather on a real SLURM: what is good is kept, each fault is named, nothing is done twice.

The cells are real ones on a tiny model. Their faults are natural: a learning rate that diverges, less memory than the
libraries need, a minute for a long training, and signals to jobs amid their training.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from grids import Grid, interrupt, patience, wait_until

pytestmark = pytest.mark.slurm

COMMON = ["debug=fast", "resources.num_threads=1", "model.dtype=float32", "cluster.signal_delay_s=5"]
KEYS = ["unlearning.learning_rate", "unlearning.max_steps", "resources.mem_gb", "resources.timeout_min"]
GOOD = ["0.001", "0.002", "0.003", "0.004", "0.005", "0.006"]
RAISES, KILLED, MEMORY, LIMIT, CANCELLED, AGAIN = "1e+30", "0.007", "0.008", "0.009", "0.01", "0.011"
ENOUGH_GB, ENOUGH_MIN = "1.5", "30"
# learning rate -> steps, memory, minutes
CELLS: dict[str, tuple[str, str, str]] = {
    **{rate: ("40", ENOUGH_GB, ENOUGH_MIN) for rate in [*GOOD, RAISES]},
    # long enough for the test to hit them amid their training
    **{rate: ("700", ENOUGH_GB, ENOUGH_MIN) for rate in [KILLED, CANCELLED, AGAIN]},
    # torch alone takes more
    MEMORY: ("40", "0.3", ENOUGH_MIN),
    LIMIT: ("100000", ENOUGH_GB, "1"),
}
# the two whose own settings were the fault; the others need only the resources back
MENDED = {RAISES: ("0.012", "40"), LIMIT: (LIMIT, "40")}


def axes(cells: dict[str, tuple[str, ...]]) -> list[str]:
    """`key=value,value` for each key, and that they advance together."""
    rows = [(rate, *rest) for rate, rest in cells.items()]
    columns = [f"{key}={','.join(row[i] for row in rows)}" for i, key in enumerate(KEYS)]
    return [*columns, f"sweep.zip=[[{','.join(KEYS)}]]"]


class Weather(threading.Thread):
    """Waits until each of these cells is amid its training, then does to it what the test says, once."""

    def __init__(self, grid: Grid, cluster: Cluster, doings: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.grid, self.cluster, self.doings = grid, cluster, dict(doings)
        self.enough = threading.Event()

    def run(self) -> None:
        while self.doings and not self.enough.wait(0.1):
            for rate in list(self.doings):
                hash = hash_of(self.grid, rate)
                alive = self.grid.path / hash / "alive.json"
                if not hash or self.grid.status(hash).get("stage") != "unlearning" or not alive.is_file():
                    continue
                if json.loads(alive.read_text())["done"] > 0:
                    self.doings.pop(rate)(self, hash)

    def handle(self, hash: str) -> str:
        jobs = json.loads((self.grid.path / "jobs.json").read_text())
        return next(job["handle"] for job in jobs.values() if hash in job["folders"])

    def kill(self, hash: str) -> None:
        os.kill(self.grid.status(hash)["pid"], signal.SIGKILL)

    def cancel(self, hash: str) -> None:
        self.cluster.command("scancel", self.handle(hash))

    def signal(self, hash: str) -> None:
        self.cluster.command("scancel", "--signal=USR2", self.handle(hash))


def hash_of(grid: Grid, rate: str) -> str:
    """Of the cell with this learning rate; empty before the sweep is planned."""
    if not (grid.path / "sweep.json").is_file():
        return ""
    return next(hash for name, hash in grid.cells().items() if f"{KEYS[0]}={rate} " in f"{name} ")


def state_of(grid: Grid, rate: str) -> str:
    return next(state for name, state in grid.states().items() if f"{KEYS[0]}={rate} " in f"{name} ")


def num_jobs(cluster: Cluster) -> int:
    return len(cluster.command("squeue", "-h").splitlines())


def numbers(result: Path) -> dict[str, Any]:
    """What a run found, without what depends on the machine's mood."""
    found = json.loads(result.read_text())
    return {key: value for key, value in found.items() if not key.startswith(("seconds.", "peak_memory_gb.", "name"))}


def test_twelve_cells_in_bad_weather(cluster: Cluster, tmp_path: Path) -> None:
    grid = Grid(tmp_path / "storm", *COMMON, "resources.max_timeouts=0", launcher="rapidun_slurm")
    weather = Weather(grid, cluster, {KILLED: Weather.kill, CANCELLED: Weather.cancel, AGAIN: Weather.signal})
    weather.start()
    status, screen = grid.run(*axes(CELLS))
    weather.enough.set()
    weather.join()
    assert weather.doings == {}, screen
    causes = {
        RAISES: "TrainingDiverged: unlearning: need a finite loss",
        KILLED: "killed by signal 9",
        MEMORY: "out of memory",
        LIMIT: "time limit",
        CANCELLED: "cancelled",
    }
    states = {rate: state_of(grid, rate) for rate in CELLS}
    assert {rate for rate, state in states.items() if state == "done"} == {*GOOD, AGAIN}, screen
    summary = (grid.path / "summary.md").read_text()
    for rate, cause in causes.items():
        assert states[rate].startswith(f"failed: {cause}"), screen
        hash = hash_of(grid, rate)
        assert f"{hash}: failed: {cause}" in screen
        assert any(hash in line and cause in line for line in summary.splitlines()), summary
    assert status == 1 and "sweep: 12 cells: 7 done, 5 failed" in screen
    again = grid.status(hash_of(grid, AGAIN))
    assert again["restarts"] == 1
    grid.whole()
    assert num_jobs(cluster) == 0

    # the one that was queued again, undisturbed and without SLURM
    calm = Grid(tmp_path / "calm", *COMMON, f"{KEYS[0]}={AGAIN}", f"{KEYS[1]}={CELLS[AGAIN][0]}")
    status, calm_screen = calm.run()
    assert status == 0, calm_screen
    here, there = (g.path / h for g, h in ((grid, hash_of(grid, AGAIN)), (calm, next(iter(calm.cells().values())))))
    adapter = "unlearning/adapter/adapter_model.safetensors"
    assert (here / adapter).read_bytes() == (there / adapter).read_bytes()
    assert numbers(here / "result.json") == numbers(there / "result.json")
    assert len(numbers(here / "result.json")) > 20

    # without the faults: seven are there, the shared results too
    before = grid.made()
    mended = {}
    for rate, (steps, _, _) in CELLS.items():
        rate, steps = MENDED.get(rate, (rate, steps))
        mended[rate] = (steps, ENOUGH_GB, ENOUGH_MIN)
    status, screen = grid.run(*axes(mended))
    assert status == 0 and "12 cells (5 to run, 7 done), 5 jobs, 0 of them for shared results" in screen, screen
    made = [id.partition("/")[0] for id, when in grid.made().items() if before.get(id) != when]
    assert sorted(made) == ["evaluation"] * 5 + ["unlearning"] * 5


def test_interrupted_on_slurm(cluster: Cluster, tmp_path: Path) -> None:
    """Ctrl-C while the shared poison runs, while cells run, then with `keep`; the same command goes on each time."""
    grid = Grid(
        tmp_path, *COMMON, "resources.mem_gb=1.5", "resources.timeout_min=30", "unlearning.learning_rate=0.001,0.002",
        "unlearning.max_steps=500", launcher="rapidun_slurm",
    )  # fmt: skip

    def stages_run() -> bool:
        return any(status["state"] == "running" for status in grid.stages().values())

    def cells_run() -> bool:
        statuses = [grid.status(hash) for hash in grid.cells().values()]
        return any(status.get("state") == "running" and status["stage"] == "unlearning" for status in statuses)

    for moment in (stages_run, cells_run):
        with grid.start() as process:
            wait_until(lambda moment=moment: grid.path.is_dir() and moment(), process=process)
            began = time.monotonic()
            interrupt(process)
            out, _ = process.communicate(timeout=600)
        assert time.monotonic() - began < patience(5)
        assert process.returncode == 130 and "interrupted: jobs cancelled" in out
        assert set(grid.states().values()) <= {"waiting", "interrupted"}
        assert grid.command("status")[0] in (0, 1)
        grid.whole()
        wait_until(lambda: num_jobs(cluster) == 0)

    with grid.start("sweep.on_interrupt=keep") as process:
        wait_until(cells_run, process=process)
        interrupt(process)
        out, _ = process.communicate(timeout=600)
    assert process.returncode == 130 and "2 jobs go on" in out
    assert num_jobs(cluster) == 2
    status, screen = grid.run()
    assert status == 0 and "2 under way" in screen and "2 done" in screen, screen
