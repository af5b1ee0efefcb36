"""Ctrl-C at each moment of a sweep: the prompt is back, every state can be read, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rapidun.sweep import interrupts
from rapidun.sweep.interrupts import deferred, one_interrupt

HERE = str(Path(__file__).parent)
sys.path[:0] = [] if HERE in sys.path else [HERE]

from grids import FAST, Grid, children_of, interrupt, patience, wait_until  # noqa: E402


@pytest.fixture(autouse=True)
def handler_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_second_interrupt_does_not_disturb_what_the_first_set_going() -> None:
    """Nor, once it has been dealt with, what the process does at its exit."""
    steps = []
    handler = signal.getsignal(signal.SIGINT)
    with one_interrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is handler
    with one_interrupt():
        try:
            press()
            steps.append("not reached")
        except KeyboardInterrupt:
            press()
            steps.append("settled")
    assert steps == ["settled"]
    press()


def test_after_a_while_an_interrupt_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hangs while it settles can be stopped."""
    monkeypatch.setattr(interrupts, "SETTLING_SECONDS", 0.05)
    with one_interrupt():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                press()
            time.sleep(0.06)


def test_a_deferred_interrupt_comes_at_the_end_and_processes_started_meanwhile_never_see_it() -> None:
    """sleep, in the same process group, would die of it; it gets the signal that kills it only afterwards."""
    steps = []
    with pytest.raises(KeyboardInterrupt), one_interrupt(), deferred():
        child = subprocess.Popen(["sleep", "30"])
        press()
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.2)
        steps.append("noted")
    assert steps == ["noted"]
    assert child.poll() is None
    child.kill()
    child.wait()
    # nothing came: nothing is raised
    with deferred():
        steps.append("again")
    assert steps == ["noted", "again"]


def test_none_of_it_outside_the_main_thread() -> None:
    import threading

    handler = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with one_interrupt(), deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handler]


RATES = "unlearning.learning_rate=0.001,0.002,0.003"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "rapidun_local"])
def test_at_each_moment(tmp_path: Path, launcher: str) -> None:
    """Four times interrupted, twice each time, one sweep of three cells still ends; done cells are not run again."""
    grid = Grid(
        tmp_path, *FAST, RATES, "poison.max_steps=40", "unlearning.max_steps=150", "sweep.max_parallel=2",
        launcher=launcher,
    )  # fmt: skip
    moments: dict[str, Callable[[], bool]] = {
        "planning": lambda: (tmp_path / "outputs" / "store").is_dir(),
        "a shared result": lambda: any(s["state"] == "running" for s in grid.stages().values()),
        "cells": lambda: any(amid_training(grid, hash) for hash in grid.cells().values()),
        "summing up": lambda: all_over(grid),
    }
    done: set[str] = set()
    for moment, has_come in moments.items():
        with grid.start() as process:
            wait_until(
                lambda come=has_come, moment=moment: (moment == "planning" or (grid.path / "jobs.json").is_file())
                and come(),
                timeout_s=180, process=process,
            )  # fmt: skip
            began = time.monotonic()
            interrupt(process)
            time.sleep(0.1)
            interrupt(process)
            out, _ = process.communicate(timeout=60)
        assert time.monotonic() - began < patience(5), f"{moment}: {out}"
        assert process.returncode == 130, f"{moment}: {out}"
        assert "Traceback" not in out, f"{moment}: {out}"
        wait_until(lambda: not children_of(tmp_path), timeout_s=10)
        grid.whole()
        if (grid.path / "sweep.json").is_file():
            status, shown = grid.command("status")
            assert "of 3 cells" in shown and status in (0, 1), f"{moment}: {shown}"
            states = grid.states()
            assert set(states.values()) <= {"waiting", "interrupted", "done"}, f"{moment}: {states}"
            assert {name for name in done if states[name] != "done"} == set(), f"{moment}: {states}"
            done |= {name for name, state in states.items() if state == "done"}
    assert len(done) == 3
    before = grid.made()
    status, screen = grid.run()
    assert status == 0 and "(0 to run, 3 done)" in screen, screen
    assert grid.made() == before
    assert sorted(id.partition("/")[0] for id in before) == [
        "data", "influence", "mapping", "model", "poison", "unlearning", "unlearning", "unlearning"
    ]  # fmt: skip


def amid_training(grid: Grid, hash: str) -> bool:
    status = grid.status(hash)
    return status.get("state") == "running" and status.get("stage") == "unlearning"


def all_over(grid: Grid) -> bool:
    """Every job of the newest launch has been seen to end: only the summary is left."""
    launch = json.loads((grid.path / "sweep.json").read_text())["launch"]
    jobs = json.loads((grid.path / "jobs.json").read_text()).values()
    return all(job["over"] for job in jobs if job["launch"] == launch) and set(grid.states().values()) == {"done"}
