"""Jobs as processes on this machine: how many at once, with which cores and devices, and how each end is told."""

import json
import os
import pickle
import pickletools
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from rapidun.base.machine import visible_gpus
from rapidun.config.sweep import ClusterConfig, ResourcesConfig
from rapidun.sweep.launcher import Job, JobState, LauncherContext, Phase
from rapidun.sweep.launchers import local
from rapidun.sweep.launchers.local import LocalLauncher, interpret, started_at
from rapidun.sweep.launchers.submission import RunJobFile, near_time_limit, share

TARGET = "launcher_target:run"
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def target_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("COLOUR", raising=False)


@pytest.fixture
def launcher(tmp_path):
    """A launcher for two jobs at once whose jobs are gone when the test is."""
    made = make_launcher(tmp_path, max_parallel=2)
    yield made
    made.cancel({handle: handle for handle in [*made.running, *made.queue]})


def make_launcher(folder, *, max_parallel=0, signal_delay_s=90):
    context = LauncherContext(
        sweep_dir=folder / "sweep", cluster=ClusterConfig(signal_delay_s=signal_delay_s), max_parallel=max_parallel
    )
    return LocalLauncher(context, target=TARGET)


@pytest.mark.parametrize("name", ["50%j dir", "%a", "x%t", "%A"])
def test_folders_that_submitit_would_read_as_others_are_refused(tmp_path, name):
    """It puts a job's number into the paths of a user's folders as well; other % it leaves."""
    (fault,) = make_launcher(tmp_path / name).check([])
    assert "sweep.name: need a sweep's folder without %" in fault and name in fault
    assert make_launcher(tmp_path / "50% [a] $x").check([]) == []


def make_job(folder, name, do, *, resources=None, needs=(), **more):
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"do": do, "out": str(folder / f"{name}.out"), **more}))
    return Job(id=name, file=file, needs=needs, resources=resources or ResourcesConfig(num_threads=1))


def seen(folder, name):
    path = folder / f"{name}.out"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, *, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def wait_for_all(launcher, handles):
    final = (Phase.done, Phase.failed, Phase.gone)
    wait_until(lambda: all(state.phase in final for state in launcher.states(handles).values()))
    return launcher.states(handles)


def test_ends_and_their_causes(launcher, tmp_path):
    """One returns, one raises (its traceback is in its own log), one is killed: each is told, none harms another."""
    jobs = [make_job(tmp_path, name, name) for name in ("note", "fail", "kill")]
    handles = launcher.submit(jobs, handles={})
    assert wait_for_all(launcher, handles) == {
        "note": JobState(Phase.done),
        "fail": JobState(Phase.failed, "exit status 1"),
        "kill": JobState(Phase.failed, "killed by signal 9"),
    }
    assert "ValueError: this cell is broken" in launcher.log(handles["fail"]).read_text()
    assert "doing note" in launcher.log(handles["note"]).read_text()
    # any later process reads the same from the files
    assert make_launcher(tmp_path).states(handles) == launcher.states(handles)
    # an attempt after a failure has a handle and a log of its own
    again = launcher.submit([jobs[1]], handles={})
    assert again["fail"] != handles["fail"]
    wait_for_all(launcher, again)


def test_no_more_than_max_parallel_at_once(launcher, tmp_path):
    jobs = [make_job(tmp_path, f"j{i}", "sleep", seconds=0.4) for i in range(5)]
    handles = launcher.submit(jobs, handles={})
    assert [state.phase for state in launcher.states(handles).values()].count(Phase.waiting) == 3
    states = wait_for_all(launcher, handles)
    assert {state.phase for state in states.values()} == {Phase.done}
    spans = [seen(tmp_path, f"j{i}")[0] for i in range(5)]
    for one in spans:
        at_once = sum(other["start"] <= one["start"] < other["end"] for other in spans)
        assert at_once <= 2


def test_cores_are_shared_out(tmp_path, monkeypatch):
    """8 cores: jobs of 2 threads go 4 at once; jobs that take all cores share them: 8 / 3 at once = 2 threads each."""
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    asked = ResourcesConfig(num_threads=2)
    assert make_launcher(tmp_path).most_at_once(asked) == 4
    assert make_launcher(tmp_path).most_at_once(ResourcesConfig(num_threads=2, num_processes=2)) == 2
    assert make_launcher(tmp_path).most_at_once(ResourcesConfig()) == local.MOST_BY_DEFAULT
    launcher = make_launcher(tmp_path, max_parallel=3)
    handles = launcher.submit(
        [
            make_job(tmp_path, "all", "note", resources=ResourcesConfig()),
            make_job(tmp_path, "two", "note", resources=asked),
        ],
        handles={},
    )
    wait_for_all(launcher, handles)
    assert (seen(tmp_path, "all")[0]["RAPIDUN_NUM_THREADS"], seen(tmp_path, "all")[0]["OMP_NUM_THREADS"]) == ("2", "2")
    assert seen(tmp_path, "two")[0]["OMP_NUM_THREADS"] == "2"


def test_each_job_sees_its_own_gpus(tmp_path, monkeypatch):
    """3 devices, jobs of one each: at no time do two jobs share one; a job without GPUs sees none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    launcher = make_launcher(tmp_path, max_parallel=3)
    gpu = ResourcesConfig(num_threads=1, num_gpus=1)
    jobs = [make_job(tmp_path, f"g{i}", "sleep", seconds=0.5, resources=gpu) for i in range(4)]
    states = wait_for_all(launcher, launcher.submit([*jobs, make_job(tmp_path, "cpu", "note")], handles={}))
    assert {state.phase for state in states.values()} == {Phase.done}
    spans = [seen(tmp_path, f"g{i}")[0] for i in range(4)]
    assert {span["CUDA_VISIBLE_DEVICES"] for span in spans[:3]} == {"3", "5", "6"}
    for one in spans:
        users = [s for s in spans if s["CUDA_VISIBLE_DEVICES"] == one["CUDA_VISIBLE_DEVICES"]]
        assert sum(other["start"] <= one["start"] < other["end"] for other in users) == 1
    assert seen(tmp_path, "cpu")[0]["CUDA_VISIBLE_DEVICES"] == ""
    # two processes of one job: one device each
    pair = ResourcesConfig(num_threads=1, num_gpus=1, num_processes=2)
    wait_for_all(launcher, launcher.submit([make_job(tmp_path, "pair", "note", resources=pair)], handles={}))
    shown = {entry["RANK"]: entry["CUDA_VISIBLE_DEVICES"] for entry in seen(tmp_path, "pair")}
    assert shown == {"0": "3", "1": "5"}
    four = ResourcesConfig(num_gpus=2, num_processes=2)
    (fault,) = launcher.check([make_job(tmp_path, "four", "note", resources=four)])
    assert "shows 3 GPUs" in fault and "num_gpus=2" in fault


def test_a_failing_process_takes_the_other_with_it(launcher, tmp_path, monkeypatch):
    """Rank 1 raises while rank 0 waits: the job fails with rank 1's status instead of running into its time limit."""
    pair = ResourcesConfig(num_threads=1, num_processes=2)
    handles = launcher.submit([make_job(tmp_path, "pair", "failing_rank", resources=pair)], handles={})
    assert wait_for_all(launcher, handles)["pair"] == JobState(Phase.failed, "exit status 1")


def test_usr2_starts_the_job_again_under_the_same_handle(launcher, tmp_path):
    handles = launcher.submit([make_job(tmp_path, "w", "wait_for_signal", restarts=2)], handles={})
    for count in (1, 2):
        wait_until(lambda count=count: len(seen(tmp_path, "w")) == count)
        os.kill(launcher.controller_pid(handles["w"]), signal.SIGUSR2)
    assert wait_for_all(launcher, handles)["w"] == JobState(Phase.done)
    assert [entry["restarts"] for entry in seen(tmp_path, "w")] == [0, 1, 2]
    assert launcher.log(handles["w"]).read_text().count("doing wait_for_signal") == 3


def test_time_limit(tmp_path):
    """A minute, signalled 57 s before its end: goes on once (max_timeouts=1), then fails by its time limit."""
    launcher = make_launcher(tmp_path, signal_delay_s=57)
    resources = ResourcesConfig(num_threads=1, timeout_min=1, max_timeouts=1)
    handles = launcher.submit([make_job(tmp_path, "t", "wait_for_signal", restarts=9, resources=resources)], handles={})
    assert wait_for_all(launcher, handles)["t"] == JobState(Phase.failed, "time limit")
    assert [entry["restarts"] for entry in seen(tmp_path, "t")] == [0, 1]


def test_cancel_stops_running_and_waiting_jobs_at_once(launcher, tmp_path):
    """Of three, two run (one deaf to SIGTERM) and one waits: all are cancelled within two seconds, processes too."""
    jobs = [
        make_job(tmp_path, "a", "wait_for_signal"),
        make_job(tmp_path, "b", "stubborn"),
        make_job(tmp_path, "c", "note"),
    ]
    handles = launcher.submit(jobs, handles={})
    wait_until(lambda: seen(tmp_path, "a") and seen(tmp_path, "b"))
    pids = [seen(tmp_path, name)[0]["pid"] for name in "ab"]
    start = time.monotonic()
    launcher.cancel(handles)
    assert time.monotonic() - start < 2
    assert launcher.states(handles) == dict.fromkeys("abc", JobState(Phase.failed, "cancelled"))
    wait_until(lambda: all(started_at(pid) is None for pid in pids))
    assert seen(tmp_path, "c") == []


def test_jobs_outlive_the_process_that_submitted_them(tmp_path):
    """kill -9 of the submitter: what has started goes on and any process can tell; what waited is gone."""
    for name in ("first", "second"):
        make_job(tmp_path, name, "sleep", seconds=1.5)
    code = f"""
import json, sys, time
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
from test_launcher_local import make_launcher, make_job
folder = Path({str(tmp_path)!r})
launcher = make_launcher(folder, max_parallel=1)
jobs = [make_job(folder, name, "sleep", seconds=1.5) for name in ("first", "second")]
print(json.dumps(launcher.submit(jobs, handles={{}})), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as submitter:
        handles = json.loads(submitter.stdout.readline())
        submitter.kill()
    launcher = make_launcher(tmp_path)
    states = launcher.states(handles)
    assert states["first"] == JobState(Phase.running)
    assert states["second"].phase is Phase.gone
    # what the submitter could not note is found again
    assert launcher.unnoted_handles(["first", "second", "third"], drop_broken=True) == {"first": handles["first"]}
    assert wait_for_all(launcher, handles)["first"] == JobState(Phase.done)


def test_a_job_killed_together_with_its_controller(launcher, tmp_path):
    handles = launcher.submit([make_job(tmp_path, "w", "wait_for_signal")], handles={})
    wait_until(lambda: seen(tmp_path, "w"))
    os.killpg(launcher.controller_pid(handles["w"]), signal.SIGKILL)
    state = wait_for_all(launcher, handles)["w"]
    assert state == JobState(Phase.failed, "killed with the process that watched it")


def test_the_pickle_holds_a_name_and_two_strings():
    """The only global in a submitted job's pickle is the class; its state are the file and the worker's name."""
    data = cloudpickle.dumps(RunJobFile("/sweep/jobs/a.json"))
    names = [arg for op, arg, _ in pickletools.genops(data) if op.name in ("GLOBAL", "SHORT_BINUNICODE", "INST")]
    assert names == [
        "rapidun.sweep.launchers.submission",
        "RunJobFile",
        "file",
        "/sweep/jobs/a.json",
        "target",
        "rapidun.sweep.worker:run_job",
    ]
    assert not [op.name for op, _, _ in pickletools.genops(data) if op.name == "REDUCE"]
    assert vars(pickle.loads(data)) == {"file": "/sweep/jobs/a.json", "target": "rapidun.sweep.worker:run_job"}
    assert vars(pickle.loads(data).checkpoint().function) == vars(pickle.loads(data))


def test_a_signal_is_a_time_limit_only_near_it():
    """240 minutes, 90 s delay, 65 s slack: a signal with 155 s left is the time limit, with 156 s left a preemption."""
    assert near_time_limit(155, signal_delay_s=90, slack_s=65)
    assert not near_time_limit(156, signal_delay_s=90, slack_s=65)


@pytest.mark.parametrize(
    ("codes", "out_of_time", "cancelled", "expected"),
    [
        ([0, 0], False, False, JobState(Phase.done)),
        ([0], False, True, JobState(Phase.done)),
        ([None, 1], False, False, JobState(Phase.failed, "exit status 1")),
        ([-11], False, False, JobState(Phase.failed, "killed by signal 11")),
        ([143], False, False, JobState(Phase.failed, "killed by signal 15")),
        ([255], False, False, JobState(Phase.failed, "exit status 255")),
        ([None], True, False, JobState(Phase.failed, "time limit")),
        ([124], False, False, JobState(Phase.failed, "time limit")),
        ([143], False, True, JobState(Phase.failed, "cancelled")),
    ],
)
def test_interpret(codes, out_of_time, cancelled, expected):
    assert interpret({"exit_codes": codes, "out_of_time": out_of_time}, cancelled=cancelled) == expected


def test_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 7")
    assert visible_gpus() == ["2", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
    assert [share(["2", "7", "8", "9"], parts=2, index=i) for i in range(2)] == [["2", "7"], ["8", "9"]]
