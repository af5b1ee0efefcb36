"""The driver's decisions, with a launcher that only pretends: what starts when, what dead jobs leave, when it ends."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.files import read_json, write_json
from rapidun.config.sweep import ResourcesConfig
from rapidun.sweep import drive
from rapidun.sweep.drive import Driver, Watched
from rapidun.sweep.folder import SweepFolder
from rapidun.sweep.jobs import live_jobs
from rapidun.sweep.launcher import Job, JobState, Launcher, NotNow, Phase

DONE = JobState(Phase.done)
RUNNING = JobState(Phase.running)
POOL_DIED = JobState(Phase.failed, drive.POOL_DIED)


def failed(cause: str) -> JobState:
    return JobState(Phase.failed, cause)


class Fake(Launcher):
    """Takes jobs, and ends each as the test's script says: job id -> what its folders say at its end, and its state."""

    outlives_driver = True

    def __init__(self, sweep: SweepFolder, *, ahead: bool = False) -> None:
        self.sweep = sweep
        self.submits_ahead = ahead
        # one entry for each call of submit
        self.submitted: list[list[str]] = []
        self.needs: dict[str, tuple[str, ...]] = {}
        self.cancelled: list[str] = []
        self.ends: dict[str, tuple[dict[str, str], JobState]] = {}
        # call -> how many jobs it takes before it takes no more; None = all
        self.refusals: list[int | None] = []
        # jobs that run until they are cancelled
        self.endless: set[str] = set()

    def submit(self, jobs: Sequence[Job], *, handles: Mapping[str, str], **steps: Any) -> dict[str, str]:
        if len(self.submitted) < len(self.refusals) and (taken := self.refusals[len(self.submitted)]) is not None:
            self.submitted.append([job.id for job in jobs[:taken]])
            steps["on_taken"]({job.id: f"handle-{job.id}" for job in jobs[:taken]})
            raise NotNow("queue full")
        self.submitted.append([job.id for job in jobs])
        self.needs |= {job.id: job.needs for job in jobs}
        return {job.id: f"handle-{job.id}" for job in jobs}

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        found = {}
        for id in handles:
            if id in self.endless and id not in self.cancelled:
                found[id] = RUNNING
                continue
            if id in self.cancelled:
                found[id] = failed("cancelled")
                continue
            left, state = self.ends.get(id, ({}, DONE))
            units = [unit["folder"] for unit in read_json(self.sweep.path / "jobs" / f"{id}.json")["units"]]
            for name in units:
                write(self.sweep, name, left.get(name, "done" if state is DONE else ""))
            found[id] = state
        return found

    def cancel(self, handles: Mapping[str, str]) -> None:
        self.cancelled += handles


def write(sweep: SweepFolder, name: str, state: str) -> None:
    """`failed: why` or `running`; empty leaves the folder as it is."""
    word, _, why = state.partition(": ")
    if word:
        error = {"message": why, "traceback": ""} if why else None
        write_json(
            sweep.folder(name) / "status.json", {"state": word, "stage": "unlearning", "stages": {}, "error": error}
        )


def make(
    tmp_path: Path, jobs: Mapping[str, tuple[Sequence[str], Sequence[str]]], *, ahead: bool = False, **more: Any
) -> tuple[Driver, Fake]:
    """Args: jobs: id -> (run folders, ids that it needs)."""
    sweep = SweepFolder(tmp_path / "grid")
    launcher = Fake(sweep, ahead=ahead)
    watched = {}
    for id, (folders, needs) in jobs.items():
        file = sweep.path / "jobs" / f"{id}.json"
        write_json(file, {"id": id, "units": [{"folder": name} for name in folders]})
        watched[id] = Watched(
            Job(id=id, file=file, needs=tuple(needs), resources=ResourcesConfig(mem_gb=3)), list(folders)
        )
    return Driver(
        sweep=sweep, launcher=launcher, launcher_name="fake", launch=1, watched=watched, **more
    ), launcher  # fmt: skip


def states(driver: Driver, names: Iterable[str]) -> dict[str, str]:
    found = driver.sweep.states(names)
    return {name: f"{s.state}: {s.error}" if s.error else s.state for name, s in found.items()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(drive, "SETTLING_SECONDS", 0.0)
    monkeypatch.setattr(drive, "TRY_AGAIN_SECONDS", 0.0)


CHAIN = {
    "cells-1": (["a"], ["influence"]),
    "cells-2": (["b"], ["influence"]),
    "influence": (["stages/influence-1"], ["poison"]),
    "poison": (["stages/poison-1"], []),
}


def test_a_job_starts_when_what_it_needs_has_ended(tmp_path: Path) -> None:
    """poison, then influence, then both cells at once, whatever order they were planned in."""
    driver, launcher = make(tmp_path, CHAIN)
    driver.run()
    assert launcher.submitted == [["poison"], ["influence"], ["cells-1", "cells-2"]]
    assert states(driver, "ab") == {"a": "done", "b": "done"}
    jobs = driver.sweep.jobs()
    assert all(job["over"] and job["handle"] == f"handle-{id}" for id, job in jobs.items())


def test_a_scheduler_gets_everything_at_once(tmp_path: Path) -> None:
    driver, launcher = make(tmp_path, CHAIN, ahead=True)
    driver.submit_all()
    driver.run()
    assert launcher.submitted == [["cells-1", "cells-2", "influence", "poison"]]


def test_what_a_scheduler_does_not_take_is_noted_said_and_handed_over_later(tmp_path: Path) -> None:
    """It takes one of four, then two, then the rest: what was taken is noted at once, no job goes twice."""
    said: list[str] = []
    driver, launcher = make(tmp_path, CHAIN, ahead=True, say=said.append)
    launcher.refusals = [1, 2]
    driver.submit_all()
    noted = {id: job["handle"] for id, job in driver.sweep.jobs().items()}
    assert noted == {"cells-1": "handle-cells-1", "cells-2": None, "influence": None, "poison": None}
    assert [watched.job.id for watched in driver.unsubmitted()] == ["cells-2", "influence", "poison"]
    driver.run()
    assert launcher.submitted == [["cells-1"], ["cells-2", "influence"], ["poison"]]
    assert len(said) == 2 and "(queue full): 1 of 4 are submitted" in said[0] and "3 of 4" in said[1]
    assert all(job["over"] and job["handle"] == f"handle-{id}" for id, job in driver.sweep.jobs().items())


def test_one_at_a_time_in_this_process(tmp_path: Path) -> None:
    driver, launcher = make(tmp_path, {"x": (["a"], []), "y": (["b"], [])})
    launcher.one_at_a_time = True
    driver.run()
    assert launcher.submitted == [["x"], ["y"]]


@pytest.mark.parametrize(
    ("left", "state", "expected"),
    [
        ("running", failed("killed by signal 9"), "failed: killed by signal 9"),
        ("running", failed("out of memory"), "failed: out of memory"),
        # it stopped in time and has no time limit left
        ("interrupted: Preempted: signal SIGUSR2", failed("time limit"), "failed: time limit"),
        ("interrupted: Preempted: signal SIGTERM", failed("cancelled"), "failed: cancelled"),
        # killed before it could write anything
        ("", failed("killed by signal 9"), "failed: killed by signal 9"),
        ("", failed(""), "failed: its job ended without a word"),
        ("", DONE, "failed: its job ended without running it"),
        ("", JobState(Phase.gone, "SLURM has forgotten this job"), "failed: SLURM has forgotten this job"),
        # its own word counts more
        ("failed: ValueError: x", failed("exit status 1"), "failed: ValueError: x"),
        ("done", failed("killed by signal 9"), "done"),
        ("pruned: 0.5 at step 3", DONE, "pruned: 0.5 at step 3"),
    ],
)
def test_a_cell_gets_its_cause(tmp_path: Path, left: str, state: JobState, expected: str) -> None:
    driver, launcher = make(tmp_path, {"x": (["a"], []), "y": (["b"], [])})
    launcher.ends["x"] = ({"a": left}, state)
    driver.run()
    assert states(driver, "ab") == {"a": expected, "b": "done"}
    assert launcher.submitted == [["x", "y"]]


def test_cells_behind_the_one_that_was_killed_run_in_a_new_job(tmp_path: Path) -> None:
    """Of three cells in a job the second is killed: the third gets a job of its own, with the same memory."""
    driver, launcher = make(tmp_path, {"x": (["a", "b", "c"], [])})
    launcher.ends["x"] = ({"a": "done", "b": "running"}, failed("out of memory"))
    driver.run()
    assert launcher.submitted == [["x"], ["x_again2"]]
    assert read_json(driver.sweep.path / "jobs" / "x_again2.json")["units"] == [{"folder": "c"}]
    assert driver.watched["x_again2"].job.resources.mem_gb == 3
    assert states(driver, "abc") == {"a": "done", "b": "failed: out of memory", "c": "done"}


def test_behind_the_time_limit_as_well_but_not_behind_a_cancel(tmp_path: Path) -> None:
    driver, launcher = make(tmp_path, {"x": (["a", "b"], []), "y": (["c", "d"], [])})
    launcher.ends["x"] = ({"a": "interrupted: Preempted"}, failed("time limit"))
    launcher.ends["y"] = ({"c": "interrupted: Preempted"}, failed("cancelled"))
    driver.run()
    assert launcher.submitted == [["x", "y"], ["x_again2"]]
    assert states(driver, "abcd") == {
        "a": "failed: time limit", "b": "done", "c": "failed: cancelled", "d": "failed: cancelled"
    }  # fmt: skip


def test_a_shared_artifact_behind_the_killed_one_is_not_tried(tmp_path: Path) -> None:
    """It would compute the killed one once more on its way."""
    names = ["stages/influence-1", "stages/mapping-1"]
    driver, launcher = make(tmp_path, {"x": (names, [])})
    launcher.ends["x"] = ({names[0]: "running"}, failed("out of memory"))
    driver.run()
    assert launcher.submitted == [["x"]]
    assert states(driver, names) == dict.fromkeys(names, "failed: out of memory")


def test_stopped_by_the_system_it_goes_on_three_times_at_most(tmp_path: Path) -> None:
    """A job that saved itself before its node went goes on in a new one; the third time its cause counts."""
    driver, launcher = make(tmp_path, {"x": (["a"], [])})
    for id in ("x", "x_again2", "x_again3"):
        launcher.ends[id] = ({"a": "interrupted: Preempted: signal SIGTERM"}, failed("node failure"))
    driver.run()
    assert launcher.submitted == [["x"], ["x_again2"], ["x_again3"]]
    assert states(driver, "a") == {"a": "failed: node failure"}
    assert drive.MAX_ATTEMPTS == 3


def test_what_waits_for_a_dead_job_waits_for_its_new_one(tmp_path: Path) -> None:
    driver, launcher = make(tmp_path, CHAIN)
    launcher.ends["poison"] = ({"stages/poison-1": "interrupted: Preempted"}, failed("node failure"))
    driver.run()
    assert launcher.submitted == [["poison"], ["poison_again2"], ["influence"], ["cells-1", "cells-2"]]
    assert launcher.needs["influence"] == ("poison_again2",)


def test_a_dead_pool_does_not_tell_whose_death_it_was(tmp_path: Path) -> None:
    """Three cells in a pool, of which b always kills its worker: each then runs alone, and only b fails."""
    driver, launcher = make(tmp_path, {"x": (["a"], []), "y": (["b"], []), "z": (["c"], []), "last": (["d"], ["z"])})
    for id, name in zip("xyz", "abc", strict=True):
        launcher.ends[id] = ({name: "running"}, POOL_DIED)
    launcher.ends["y_again2"] = launcher.ends["y_again3"] = ({"b": "running"}, POOL_DIED)
    driver.run()
    assert launcher.submitted[0] == ["x", "y", "z"]
    alone = ["x_again2", "y_again2", "z_again2"]
    assert [jobs for jobs in launcher.submitted if set(jobs) & set(alone)] == [[id] for id in alone]
    assert states(driver, "abcd") == {"a": "done", "b": "failed: its process was killed", "c": "done", "d": "done"}


def test_max_failures_end_the_sweep(tmp_path: Path) -> None:
    """Two of four fail, as many as allowed: the running one is cancelled, the last never starts."""
    jobs = {"w": (["a"], []), "x": (["b"], []), "y": (["c"], []), "z": (["d"], ["y"])}
    driver, launcher = make(tmp_path, jobs, max_failures=2)
    launcher.ends["w"] = ({"a": "failed: ValueError: 1"}, failed("exit status 1"))
    launcher.ends["x"] = ({"b": "failed: ValueError: 2"}, failed("exit status 1"))
    launcher.endless = {"y"}
    write(driver.sweep, "c", "running")
    driver.run()
    assert launcher.submitted == [["w", "x", "y"]]
    assert launcher.cancelled == ["y"]
    assert driver.stopped == driver.sweep.stopped() == "2 failed, sweep.max_failures or fail_fast allow 2"
    assert states(driver, "acd") == {
        "a": "failed: ValueError: 1", "c": "interrupted: its job was cancelled", "d": "waiting"
    }  # fmt: skip


def test_a_worker_that_ended_the_sweep_is_heard(tmp_path: Path) -> None:
    """Cells that the worker did not start after the last failure allowed have not failed."""
    driver, launcher = make(tmp_path, {"x": (["a", "b"], []), "y": (["c"], ["x"])}, max_failures=1)
    launcher.ends["x"] = ({"a": "failed: ValueError"}, failed("exit status 1"))
    driver._submit_ready()
    driver.sweep.stop("1 failed, as many as allowed")
    driver.run()
    assert launcher.submitted == [["x"]]
    assert driver.stopped == "1 failed, as many as allowed"
    assert states(driver, "bc") == {"b": "waiting", "c": "waiting"}


def test_cancelled_by_us_is_not_failed(tmp_path: Path) -> None:
    """Ctrl-C, then the same command while the jobs still end: they go on, and no attempt is counted."""
    driver, launcher = make(tmp_path, {"x": (["a"], []), "y": (["b"], [])})
    launcher.endless = {"x", "y"}
    driver._submit_ready()
    write(driver.sweep, "a", "running")
    driver.cancel()
    driver.settle()
    assert states(driver, "ab") == {"a": "interrupted: its job was cancelled", "b": "waiting"}
    assert [job["cancelled"] for job in driver.sweep.jobs().values()] == [True, True]
    driver.run()
    assert launcher.submitted == [["x", "y"], ["x_again2", "y_again2"]]
    assert [driver.watched[id].attempt for id in ("x_again2", "y_again2")] == [1, 1]
    assert states(driver, "ab") == {"a": "done", "b": "done"}


def test_only_jobs_that_may_still_run_are_asked_for(tmp_path: Path) -> None:
    """Over, or never submitted, or of a launcher whose jobs end with their process: nothing of them is under way."""
    _, launcher = make(tmp_path, {})
    launcher.endless = {"runs"}
    entry = {"launcher": "fake", "handle": "h", "over": False}
    jobs = {"runs": entry, "over": entry | {"over": True}, "never": entry | {"handle": None}}
    assert live_jobs(jobs, lambda name: launcher) == {"runs": RUNNING}
    launcher.outlives_driver = False
    assert live_jobs(jobs, lambda name: launcher) == {}


def test_who_only_watches_starts_nothing(tmp_path: Path) -> None:
    """`rapidun sweep collect`: what a dead job left waits for `resume`; one that was cancelled is interrupted."""
    driver, launcher = make(
        tmp_path, {"a": (["a1"], []), "b": (["b1", "b2"], []), "c": (["c1"], []), "d": (["d1"], ["a"])}, submits=False
    )
    for id in "abc":
        driver.watched[id].handle = f"handle-{id}"
    del driver.watched["d"]
    driver.watched["c"].cancelled = True
    launcher.ends = {
        "b": ({"b1": "done", "b2": ""}, failed("killed by signal 9")), "c": ({"c1": "running"}, failed("cancelled")),
    }  # fmt: skip
    driver.sweep.stop("cancelled by rapidun sweep cancel")
    driver.run()
    assert launcher.submitted == [] and launcher.cancelled == []
    assert states(driver, ["a1", "b1", "b2", "c1", "d1"]) == {
        "a1": "done", "b1": "done", "b2": "interrupted: its job ended before it did",
        "c1": "interrupted: its job ended before it did", "d1": "waiting",
    }  # fmt: skip
