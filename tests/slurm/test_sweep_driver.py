"""The process that drives a sweep dies, or goes on purpose, or is not alone: the files and SLURM know the rest."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grids import patience
from sweeps import Sweeping, finished, wait_until

pytestmark = pytest.mark.slurm

GRID = ("mapping=rapidun", "mapping.tau_f=0.3,0.7", "seed=0,1")
# the artifacts of GRID, by hand: tau decides the mapping, tau and seed the unlearning
MADE = {"data": 1, "model": 1, "poison": 1, "influence": 1, "mapping": 2, "unlearning": 4, "evaluation": 5}


@pytest.fixture
def grid(cluster, tmp_path: Path) -> Iterator[Sweeping]:
    made = Sweeping(tmp_path / "here", *GRID)
    made.start.mkdir()
    yield made
    made.cancel()


def moment(grid: Sweeping, name: str) -> bool:
    """Whether a sweep has come so far."""
    if name == "submitted":
        return len(grid.handles) == 7 and None not in grid.handles.values()
    statuses = grid.statuses()
    if name == "upstream":
        return any(name.startswith("stages/poison") for name in statuses)
    return any(not name.startswith("stages/") and status["state"] == "done" for name, status in statuses.items())


@pytest.mark.parametrize(
    ("when", "then"),
    [("submitted", "collect"), ("upstream", "command"), ("array", "command"), ("array", "collect"), ("end", "collect")],
)
def test_a_killed_driver_costs_nothing(grid, tmp_path, when, then):
    """kill -9 of the submitting process; `collect` (from elsewhere) and the same command both end with everything done.

    No job is submitted a second time, and each result is made once. "end": nothing is left to do but to tell.
    """
    driver = grid.spawn()
    wait_until(lambda: moment(grid, "array" if when == "end" else when), tell=grid.tell)
    driver.kill()
    driver.communicate()
    handles = grid.handles
    if when == "end":
        wait_until(lambda: grid.states() == {"done": 4}, tell=grid.tell)
        assert (grid.dir / "driver.lease").exists()
    if then == "command":
        printed = grid.run()
    else:
        printed = grid.command("collect", os.path.relpath(grid.dir, tmp_path), cwd=tmp_path)
    assert "sweep: 4 cells: 4 done" in printed
    assert grid.handles == handles
    assert grid.assert_each_made_once() == MADE
    assert (grid.dir / "summary.csv").is_file()
    assert not (grid.dir / "driver.lease").exists()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_driver_killed_while_it_submits(grid, tmp_path, moment):
    """kill -9 from within the second sbatch, before or after SLURM has taken the jobs.

    The first submission is noted; the second, where it was taken, is found by its comment, lacks its calls and is
    cancelled. Both are needed: what is submitted anew waits for the first.
    """
    shim = tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    real = shutil.which("sbatch")
    shim.write_text(
        "#!/bin/sh\n"
        f'echo >> {tmp_path}/calls; [ "$(wc -l < {tmp_path}/calls)" = 2 ] || exec {real} "$@"\n'
        + (f'{real} "$@" > /dev/null; ' if moment == "after" else "")
        + "kill -9 $PPID\n"
    )
    shim.chmod(0o755)
    driver = grid.spawn(PATH=f"{shim.parent}:{os.environ['PATH']}")
    finished(driver, expect=-signal.SIGKILL)
    assert [id.partition("-")[0] for id, handle in grid.handles.items() if handle] == ["poison"]
    # looking on finds the jobs and changes nothing
    printed = grid.command("status", str(grid.dir))
    assert f"{'3' if moment == 'after' else '1'} jobs under way" in printed
    printed = grid.run()
    assert "7 jobs" not in printed
    assert grid.states() == {"done": 4}
    assert grid.assert_each_made_once() == MADE
    # the poison job that was noted is the only one
    [poison] = [handle for id, handle in grid.handles.items() if "poison" in id]
    assert poison is not None


def test_a_second_driver_is_refused(grid):
    """One clear message, exit status 2; the first goes on undisturbed. Looking on is allowed."""
    first = grid.spawn()
    wait_until(lambda: moment(grid, "submitted"), tell=grid.tell)
    for printed in (grid.run(expect=2), grid.command("collect", str(grid.dir), expect=2)):
        assert f"process {first.pid}" in printed
        assert "rapidun sweep status" in printed
        assert "Traceback" not in printed
    assert "of 4 cells" in grid.command("status", str(grid.dir))
    assert "4 cells: 4 done" in finished(first, expect=0)
    assert grid.assert_each_made_once() == MADE


def test_detach_then_look_after_it_from_elsewhere(grid, tmp_path):
    """Submit and return; status, cancel, retry, logs and collect by files alone, from another directory."""
    start = time.monotonic()
    printed = grid.run("sweep.detach=true")
    # most of it is the composition of the cells; nothing waits for a job
    assert time.monotonic() - start < patience(20)
    assert "submitted 7 jobs" in printed
    assert not (grid.dir / "driver.lease").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = os.path.relpath(grid.dir, elsewhere)
    assert "7 jobs under way" in grid.command("status", name, cwd=elsewhere)
    wait_until(lambda: moment(grid, "upstream"), tell=grid.tell)
    assert "jobs cancelled" in grid.command("cancel", name, cwd=elsewhere)
    wait_until(lambda: "0 jobs under way" in grid.command("status", name, cwd=elsewhere, expect=None))
    assert grid.states()["done"] == 0
    assert "4 cells: 4 done" in grid.command("retry", name, cwd=elsewhere)
    assert not any(elsewhere.iterdir())
    cell = grid.cells[2]
    printed = grid.command("logs", name, cell[:6], cwd=elsewhere)
    assert f"{cell}: " in printed and "unlearning  done" in printed
    printed = grid.command("collect", name, cwd=elsewhere)
    assert "4 cells: 4 done" in printed
    assert {manifest["stage"] for manifest in grid.manifests()} == set(MADE)
    assert len(grid.manifests()) == sum(MADE.values())


def test_cancel_then_retry_at_once(grid, tmp_path):
    """Jobs that are still completing are waited for, then their cells are submitted anew; nothing is made twice.

    sbatch's own jobs take a second or two to end after scancel: the worker saves itself first.
    """
    grid.run("sweep.detach=true")
    wait_until(lambda: moment(grid, "upstream"), tell=grid.tell)
    first = dict(grid.handles)
    grid.command("cancel", str(grid.dir))
    printed = grid.command("retry", str(grid.dir))
    assert "4 cells: 4 done" in printed
    assert "failed" not in printed
    assert "1 under way" not in printed
    again = {id: handle for id, handle in grid.handles.items() if id not in first}
    assert again and not set(again.values()) & set(first.values())
    assert {manifest["stage"] for manifest in grid.manifests()} == set(MADE)
    assert len(grid.manifests()) == sum(MADE.values())


def test_cancel_then_retry_at_once_beside_the_driver(grid):
    """The driver is told to stop and ends when its jobs have: retry waits for it instead of being refused."""
    driver = grid.spawn()
    wait_until(lambda: moment(grid, "upstream"), tell=grid.tell)
    grid.command("cancel", str(grid.dir))
    printed = grid.command("retry", str(grid.dir))
    assert "4 cells: 4 done" in printed and "for this process alone" not in printed
    assert "ended early: cancelled by rapidun sweep cancel" in finished(driver, expect=1)
    assert grid.states() == {"done": 4}


def test_collect_only_collects(grid):
    """After a cancel, collect waits for what is completing and starts nothing; status says interrupted; resume runs."""
    grid.run("sweep.detach=true")
    wait_until(lambda: moment(grid, "upstream"), tell=grid.tell)
    grid.command("cancel", str(grid.dir))
    handles = grid.handles
    printed = grid.command("collect", str(grid.dir), expect=1)
    assert grid.handles == handles and "rapidun sweep resume" in printed
    assert grid.states().get("failed", 0) == 0
    printed = grid.command("status", str(grid.dir), expect=1)
    assert (
        "of 4 cells" in printed and "interrupted (cancelled by rapidun sweep cancel): nothing is under way" in printed
    )
    assert "4 cells: 4 done" in grid.command("resume", str(grid.dir))
