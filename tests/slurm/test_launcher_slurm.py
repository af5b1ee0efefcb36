"""The SLURM launcher on a real SLURM: order, arrays, devices, ranks, and the cause of every end."""

import os
import signal
import time

import pytest
from cluster import Cluster
from grids import patience
from launching import DONE, Sweep
from sweeps import wait_until

from rapidun.base.errors import RapidunError
from rapidun.sweep.launcher import JobState, Phase

pytestmark = pytest.mark.slurm


@pytest.fixture
def sweep(cluster, tmp_path):
    made = Sweep(tmp_path)
    yield made
    made.launcher.cancel(made.handles)


@pytest.fixture(scope="module")
def slow_limit(cluster, tmp_path_factory):
    """Two jobs that run into their limits while the other tests run.

    `deaf` has one minute, the least that SLURM has: the signal comes while it starts, and it ignores later ones until
    SLURM kills it. `heeds` has three, stops at the signal one to two minutes before its limit (long enough for
    a busy machine to start it), and has no more time limits left.
    """
    made = Sweep(tmp_path_factory.mktemp("limit"), signal_delay_s=60)
    made.submit(
        made.job("deaf", "stubborn", resources={"timeout_min": 1, "max_timeouts": 0}),
        made.job("heeds", "sleep", resources={"timeout_min": 3, "max_timeouts": 0}),
    )
    yield made
    made.launcher.cancel(made.handles)


def test_an_array_of_six_after_two_artifacts(slow_limit, sweep):
    """poison, then influence, then six cells in one array, in this order, all submitted at once."""
    cells = [sweep.job(f"c{i}", "note", needs=("poison", "influence")) for i in range(6)]
    sweep.submit(
        *cells,
        sweep.job("influence", "note", needs=("poison",)),
        sweep.job("poison", "sleep", seconds=1),
    )
    bases = {sweep.handles[f"c{i}"].partition("_")[0] for i in range(6)}
    assert len(bases) == 1
    assert sweep.states()["c3"].phase is Phase.waiting
    assert set(sweep.wait().values()) == {DONE}
    (poison,), (influence,) = sweep.seen("poison"), sweep.seen("influence")
    assert poison["end"] <= influence["start"]
    assert all(influence["end"] <= sweep.seen(f"c{i}")[0]["start"] for i in range(6))
    assert sweep.seen("c0")[0]["OMP_NUM_THREADS"] == "1"
    assert "doing note" in sweep.log("c5")
    # those that have ended, or that nobody remembers, hold nothing back
    sweep.handles["old"] = "999999_3"
    sweep.submit(sweep.job("later", "note", needs=("c0", "old")))
    assert sweep.wait("later")["later"] == DONE
    assert sweep.states()["old"].phase is Phase.gone


def test_each_end_has_its_cause(sweep, cluster):
    """Five ends in one array of which one returns; a job that needs the failed ones starts all the same."""
    doings = {"returns": "note", "raises": "fail", "killed": "kill", "eats": "eat", "cancelled": "sleep"}
    sweep.submit(*[sweep.job(name, do) for name, do in doings.items()])
    sweep.submit(sweep.job("after", "note", needs=("raises", "killed")))
    wait_until(lambda: sweep.states()["cancelled"].phase is Phase.running, tell=sweep.tell)
    wait_until(lambda: "doing sleep" in sweep.log("cancelled"), tell=sweep.tell)
    start = time.monotonic()
    sweep.launcher.cancel({"cancelled": sweep.handles["cancelled"]})
    assert time.monotonic() - start < patience(2)
    assert sweep.wait() == {
        "returns": DONE,
        "raises": JobState(Phase.failed, "exit status 1"),
        "killed": JobState(Phase.failed, "killed by signal 9"),
        "eats": JobState(Phase.failed, "out of memory"),
        "cancelled": JobState(Phase.failed, "cancelled"),
        "after": DONE,
    }
    assert "ValueError: this cell is broken" in sweep.log("raises")
    # it left by itself at SIGTERM, and was not queued again
    wait_until(lambda: "stopped: signal SIGTERM" in sweep.log("cancelled"), tell=sweep.tell)
    # a later process knows the same
    assert Sweep(sweep.folder).launcher.states(sweep.handles) == sweep.states()


def test_usr2_queues_the_job_again(sweep, cluster):
    """The same job id, log and folder; SLURM counts the restart; a preemption takes nothing off max_timeouts=0."""
    resources = {"timeout_min": 20, "max_timeouts": 0}
    sweep.submit(sweep.job("w", "wait_for_signal", resources=resources), sweep.job("x", "note", resources=resources))
    wait_until(lambda: sweep.seen("w"), tell=sweep.tell)
    cluster.command("scancel", "--signal=USR2", sweep.handles["w"])
    assert sweep.wait()["w"] == DONE
    assert [entry["restarts"] for entry in sweep.seen("w")] == [0, 1]
    assert sweep.log("w").count("doing wait_for_signal") == 2


def test_each_task_sees_exactly_its_own_device(sweep):
    """Four array tasks of one GPU each on two fake GPUs, then one job of two processes; one without GPUs sees none."""
    gpu = {"num_gpus": 1}
    sweep.submit(*[sweep.job(f"g{i}", "sleep", seconds=1, resources=gpu) for i in range(4)])
    sweep.submit(
        sweep.job("pair", "note", resources=gpu | {"num_processes": 2, "mem_gb": 0.8}), sweep.job("none", "note")
    )
    assert set(sweep.wait().values()) == {DONE}
    spans = [sweep.seen(f"g{i}")[0] for i in range(4)]
    assert {span["CUDA_VISIBLE_DEVICES"] for span in spans} == {"0", "1"}
    for one in spans:
        users = [s for s in spans if s["CUDA_VISIBLE_DEVICES"] == one["CUDA_VISIBLE_DEVICES"]]
        assert sum(other["start"] <= one["start"] < other["end"] for other in users) == 1
    assert {entry["RANK"]: entry["CUDA_VISIBLE_DEVICES"] for entry in sweep.seen("pair")} == {"0": "0", "1": "1"}
    assert not sweep.seen("none")[0]["CUDA_VISIBLE_DEVICES"]


def test_two_processes_of_a_job(sweep):
    """They find each other over gloo (1 + 2 = 3); where one fails, the other is stopped and the first is the cause."""
    two = {"num_processes": 2, "mem_gb": 3.0}
    sweep.submit(sweep.job("sum", "gloo", resources=two), sweep.job("broken", "failing_rank", resources=two))
    states = sweep.wait()
    assert states == {"sum": DONE, "broken": JobState(Phase.failed, "exit status 1")}
    assert sorted((entry["RANK"], entry["WORLD_SIZE"], entry["total"]) for entry in sweep.seen("sum")) == [
        ("0", "2", 3.0),
        ("1", "2", 3.0),
    ]


def test_no_more_than_max_parallel_at_once(cluster, tmp_path):
    sweep = Sweep(tmp_path, max_parallel=2, environment={"COLOUR": "it's $HOME; false"})
    sweep.submit(*[sweep.job(f"j{i}", "sleep", seconds=0.5, resources={"timeout_min": 5 + i % 2}) for i in range(5)])
    assert set(sweep.wait().values()) == {DONE}
    spans = [sweep.seen(f"j{i}")[0] for i in range(5)]
    for one in spans:
        assert sum(other["start"] <= one["start"] < other["end"] for other in spans) <= 2
    assert spans[0]["COLOUR"] == "it's $HOME; false"


def test_what_the_partition_cannot_give_is_refused_before_submission(sweep):
    """The test cluster's node: 8 CPUs, 16000 MB, 2 GPUs, one hour."""
    fits = sweep.job("fits", "note", resources={"timeout_min": 60})
    assert sweep.launcher.check([fits]) == []
    asked = [{"timeout_min": 61}, {"num_threads": 9}, {"mem_gb": 16.0}, {"num_gpus": 3}]
    faults = sweep.launcher.check([sweep.job("no", "note", resources={"timeout_min": 60} | each) for each in asked])
    keys = ["resources.timeout_min", "resources.num_threads", "resources.mem_gb", "resources.num_gpus"]
    assert [fault.partition(":")[0] for fault in faults] == keys
    assert "allows at most 60, got 61" in faults[0]
    (fault,) = Sweep(sweep.folder, partition="gpus").launcher.check([fits])
    assert "need one of ci, got gpus" in fault


def test_a_refused_submission_says_why(cluster, tmp_path):
    sweep = Sweep(tmp_path, sbatch={"reservation": "nobody-made-this"})
    with pytest.raises(RapidunError, match=r"SLURM took no jobs: .*reservation"):
        sweep.submit(sweep.job("a", "note"))


def test_the_script_is_what_sbatch_takes(sweep, cluster):
    """The text shown by a dry run passes `sbatch --test-only`."""
    script = sweep.folder / "shown.sh"
    shown = sweep.launcher.script([sweep.job(f"c{i}", "note", resources={"timeout_min": 20}) for i in range(3)])
    script.write_text(shown[shown.index("#!/bin/bash") :])
    cluster.command("sbatch", "--test-only", str(script))


def test_a_second_cluster_small_arrays_and_a_controller_that_is_away(cluster, tmp_path, tmp_path_factory, monkeypatch):
    """Another cluster beside the first, with MaxArraySize=4: 10 jobs are 4 + 4 + 2.

    Its controller stopped, states neither hang nor lie; back again, they tell the truth, and a job that it has
    forgotten is gone.
    """
    with Cluster(tmp_path_factory.mktemp("other"), cpus=4, gpus=0, max_array_size=4, min_job_age=2) as other:
        for name, value in (other.environment | {"PYTHONPATH": os.environ["PYTHONPATH"]}).items():
            monkeypatch.setenv(name, value)
        sweep = Sweep(tmp_path)
        handles = sweep.submit(*[sweep.job(f"j{i}", "note") for i in range(10)])
        sizes = [handle.partition("_")[0] for handle in handles.values()]
        assert [sizes.count(base) for base in dict.fromkeys(sizes)] == [4, 4, 2]
        assert set(sweep.wait().values()) == {DONE}

        sweep.submit(sweep.job("long", "sleep"), sweep.job("short", "sleep", seconds=4))
        wait_until(lambda: {sweep.states()[n].phase for n in ("long", "short")} == {Phase.running}, tell=sweep.tell)
        # not merely running: an srun that has not begun its step gives up after 10 s without a controller
        wait_until(lambda: all("doing sleep" in sweep.log(n) for n in ("long", "short")), tell=sweep.tell)
        pid = int((other.folder / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        states = sweep.states()
        assert time.monotonic() - start < patience(7)
        assert states["long"].phase is Phase.running and "does not answer" in states["long"].cause
        assert states["j0"] == DONE
        assert Sweep(tmp_path).launcher.states({"long": handles["j0"]})["long"].phase is Phase.waiting
        os.kill(pid, signal.SIGCONT)
        assert sweep.wait("short")["short"] == DONE
        assert sweep.states()["long"] == JobState(Phase.running)
        sweep.launcher.cancel(sweep.handles)
        assert sweep.wait("long")["long"] == JobState(Phase.failed, "cancelled")
        # MinJobAge=2: a process that has not seen the end learns only that the job is gone
        later = {"j0": handles["j0"]}
        wait_until(lambda: Sweep(tmp_path).launcher.states(later)["j0"].phase is Phase.gone)
    assert not list(other.folder.glob("*.pid"))


def test_time_limits(slow_limit):
    """Both ways end as failed with the same cause: killed by SLURM, and stopped in time without a time limit left."""
    states = slow_limit.wait()
    assert states == dict.fromkeys(("deaf", "heeds"), JobState(Phase.failed, "time limit"))
    assert "timed-out too many times" in slow_limit.log("heeds")
