"""What administrators, nodes and daemons do to jobs that wait or run: each is told for what it is, none is lost.

Jobs of a few lines, so that the weather is SLURM's own; real sweeps through worse are in test_sweep_faults.py.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import use
from launching import DONE, Sweep
from sweeps import Sweeping, wait_until

from rapidun.sweep.launcher import JobState, Phase

pytestmark = pytest.mark.slurm

RUNNING = JobState(Phase.running)


@pytest.fixture(scope="module")
def weather(cluster, tmp_path_factory):
    """A cluster of its own, whose node and daemons go down; the common one is there first, and is left again."""
    if reason := Cluster.missing():
        pytest.skip(f"no SLURM here: {reason}")
    with Cluster(tmp_path_factory.mktemp("weather"), cpus=4, gpus=0) as running, use(running):
        yield running


@pytest.fixture
def sweep(weather, tmp_path):
    made = Sweep(tmp_path)
    yield made
    made.launcher.cancel(made.handles)


def under_way(sweep: Sweep, *names: str) -> None:
    """Wait until these jobs do what they are to do."""
    for name in names:
        wait_until(lambda name=name: "doing" in sweep.log(name), tell=sweep.tell)


def node(cluster: Cluster, state: str, reason: str = "") -> None:
    more = [f"Reason={reason}"] if reason else []
    # SLURM refuses to resume a node that has come back by itself
    cluster.command("scontrol", "update", f"NodeName={cluster.host}", f"State={state}", *more, check=state != "RESUME")


def test_held_is_said_and_released_it_runs(weather, sweep):
    sweep.submit(sweep.job("first", "sleep"), sweep.job("held", "note", needs=("first",)))
    under_way(sweep, "first")
    weather.command("scontrol", "hold", sweep.handles["held"])
    sweep.launcher.cancel({"first": sweep.handles["first"]})
    sweep.wait("first")
    wait_until(lambda: sweep.states()["held"].cause.startswith("held by"), tell=sweep.tell)
    assert sweep.states()["held"].phase is Phase.waiting
    weather.command("scontrol", "release", sweep.handles["held"])
    assert sweep.wait("held")["held"] == DONE


def test_a_node_that_is_drained_ends_what_runs_and_starts_nothing(weather, sweep):
    """One job runs to its end; the other waits, with the reason, until the node is back."""
    sweep.submit(sweep.job("runs", "sleep", seconds=8))
    under_way(sweep, "runs")
    node(weather, "DRAIN", "memory")
    try:
        sweep.submit(sweep.job("waits", "note"))
        assert sweep.wait("runs")["runs"] == DONE
        wait_until(lambda: sweep.states()["waits"].cause, tell=sweep.tell)
        state = sweep.states()["waits"]
        assert state.phase is Phase.waiting and "nodes it needs" in state.cause
    finally:
        node(weather, "RESUME")
    assert sweep.wait("waits")["waits"] == DONE


def test_a_node_that_goes_down_takes_its_jobs_and_they_come_back(weather, sweep):
    """SLURM queues them again under their ids; the state never says that they failed for good while they wait."""
    sweep.submit(*[sweep.job(f"j{i}", "wait_for_signal") for i in range(2)])
    wait_until(lambda: all(sweep.seen(f"j{i}") for i in range(2)), tell=sweep.tell)
    node(weather, "DOWN", "power")
    try:
        wait_until(lambda: {state.phase for state in sweep.states().values()} == {Phase.waiting}, tell=sweep.tell)
    finally:
        node(weather, "RESUME")
    assert set(sweep.wait().values()) == {DONE}
    assert [[entry["restarts"] for entry in sweep.seen(f"j{i}")] for i in range(2)] == [[0, 1], [0, 1]]


def test_a_storm_of_requeues(weather, sweep):
    """`scontrol requeue` three times, at once and amid the next start: the same id, done in the end."""
    sweep.submit(sweep.job("j", "wait_for_signal", restarts=2))
    handle = sweep.handles["j"]
    under_way(sweep, "j")

    def requeued(count: int) -> bool:
        # again and again: SLURM refuses it while the job is on its way back
        weather.command("scontrol", "requeue", handle, check=False)
        return f"Restarts={count}" in weather.command("scontrol", "show", "job", handle)

    for count in (1, 2):
        wait_until(lambda count=count: requeued(count), tell=sweep.tell)
        wait_until(lambda: sweep.states()["j"] == RUNNING, tell=sweep.tell)
    assert sweep.wait("j")["j"] == DONE


def test_a_signal_while_a_job_starts_does_not_end_it(weather, sweep):
    """USR2 from the first moment on, before Python has a handler: the job is queued again or goes on, and is done."""
    sweep.submit(sweep.job("j", "note", resources={"timeout_min": 20, "max_timeouts": 0}))
    wait_until(lambda: sweep.states()["j"] == RUNNING, tell=sweep.tell)
    for _ in range(5):
        weather.command("scancel", "--signal=USR2", sweep.handles["j"], check=False)
    assert sweep.wait("j")["j"] == DONE


def test_the_controller_is_restarted_while_jobs_wait_and_run(weather, sweep):
    sweep.submit(sweep.job("runs", "sleep", seconds=10), sweep.job("after", "note", needs=("runs",)))
    under_way(sweep, "runs")
    wait_until(lambda: sweep.states()["runs"] == RUNNING, tell=sweep.tell)
    weather.stop_daemon("slurmctld")
    try:
        away = sweep.states()
    finally:
        weather.start_slurmctld()
    assert away["runs"].phase is Phase.running and "does not answer" in away["runs"].cause
    assert away["after"].phase is Phase.waiting
    assert sweep.wait() == {"runs": DONE, "after": DONE}
    assert [len(sweep.seen(name)) for name in ("runs", "after")] == [1, 1]


def test_the_nodes_daemon_is_restarted_under_a_running_job(weather, sweep):
    sweep.submit(sweep.job("runs", "sleep", seconds=6))
    under_way(sweep, "runs")
    weather.stop_daemon("slurmd")
    weather.start_slurmd()
    weather.wait_for_node("mixed")
    assert sweep.wait() == {"runs": DONE}
    assert len(sweep.seen("runs")) == 1


def test_a_job_that_is_stopped_and_goes_on(weather, sweep):
    """SIGSTOP, then SIGCONT: running all the while, done once."""
    sweep.submit(sweep.job("j", "sleep", seconds=3))
    under_way(sweep, "j")
    weather.command("scancel", "--signal=STOP", sweep.handles["j"])
    assert sweep.states()["j"] == RUNNING
    weather.command("scancel", "--signal=CONT", sweep.handles["j"])
    assert sweep.wait() == {"j": DONE}
    assert len(sweep.seen("j")) == 1


def test_cancelled_before_it_starts(weather, sweep):
    """Tasks of an array, some of them, of which SLURM then knows nothing: that is told, the others run."""
    sweep.submit(sweep.job("first", "sleep", seconds=2))
    sweep.submit(*[sweep.job(f"j{i}", "note", needs=("first",)) for i in range(4)])
    weather.command("scancel", sweep.handles["j1"], sweep.handles["j2"])
    cancelled = JobState(Phase.gone, "cancelled before it started, or forgotten by SLURM")
    assert sweep.wait() == {"first": DONE, "j0": DONE, "j1": cancelled, "j2": cancelled, "j3": DONE}


def test_a_node_whose_spool_is_full(cluster, tmp_path, tmp_path_factory):
    """slurmd cannot write a job's script: SLURM holds the job, which is said; with room again it runs."""
    folder = tmp_path_factory.mktemp("full")
    spool = folder / "spool"
    spool.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(spool)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with Cluster(folder, cpus=2, gpus=0) as full, use(full):
            sweep = Sweep(tmp_path)
            block = spool / "block"
            with block.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * 512)
                except OSError:
                    pass
            sweep.submit(sweep.job("j", "note"))
            wait_until(lambda: "holds it" in sweep.states()["j"].cause, tell=sweep.tell)
            assert sweep.states()["j"].phase is Phase.waiting
            # what an administrator does: room, and away with the half of a job that SLURM left there
            block.unlink()
            for path in spool.glob("job*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            node(full, "RESUME")
            full.command("scontrol", "release", sweep.handles["j"])
            assert sweep.wait() == {"j": DONE}
    finally:
        subprocess.run(["umount", "-l", str(spool)], check=True)


LIGHT = ["stages=[data]", "seed=0,1,2", "resources.mem_gb=1"]


def held(cluster: Cluster, start: Path) -> tuple[Sweeping, list[str]]:
    """A sweep of three light cells whose jobs are all held, and no driver."""
    start.mkdir(parents=True)
    grid = Sweeping(start, *LIGHT)
    node(cluster, "DRAIN", "wait")
    try:
        grid.run("sweep.detach=true")
        handles = [handle for handle in grid.handles.values() if handle]
        cluster.command("scontrol", "hold", *handles)
    finally:
        node(cluster, "RESUME")
    return grid, handles


def test_a_project_that_is_moved_under_waiting_jobs(weather, tmp_path):
    """They find neither log nor job file, and end; `resume` at the new place runs their cells."""
    _, handles = held(weather, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    weather.command("scontrol", "release", *handles)
    wait_until(lambda: not weather.command("squeue", "-h"))
    moved = Sweeping(tmp_path / "there", *LIGHT)
    assert moved.states() == {"waiting": 3}
    moved.command("collect", str(moved.dir), expect=1)
    assert moved.states() == {"waiting": 3}
    printed = moved.command("resume", str(moved.dir))
    assert "3 cells: 3 done" in printed
    assert not (tmp_path / "here" / "outputs" / "sweeps" / "grid" / "sweep.json").exists()


def test_a_sweep_folder_that_is_removed_under_waiting_jobs(weather, tmp_path):
    """They end without having done anything; the same command makes the sweep anew."""
    grid, handles = held(weather, tmp_path / "here")
    shutil.rmtree(grid.dir)
    weather.command("scontrol", "release", *handles)
    wait_until(lambda: not weather.command("squeue", "-h"))
    assert "3 cells: 3 done" in grid.run()
    assert not set(handles) & set(grid.handles.values())


def test_a_sweep_folder_that_is_removed_under_its_driver(weather, tmp_path):
    """The driver ends by itself, with a message and no traceback; the same command makes the sweep anew."""
    (tmp_path / "here").mkdir()
    grid = Sweeping(tmp_path / "here", *LIGHT)
    node(weather, "DRAIN", "wait")
    driver = grid.spawn()
    try:
        wait_until(lambda: grid.handles and all(grid.handles.values()))
        shutil.rmtree(grid.dir)
    finally:
        node(weather, "RESUME")
    printed, _ = driver.communicate(timeout=900)
    assert driver.returncode in (1, 2), printed
    assert "Traceback" not in printed
    assert "3 cells: 3 done" in grid.run()


def test_scancel_amid_each_stage(cluster, tmp_path):
    """The job of each stage in turn: what waits for it says so, the same command goes on, each result is made once."""
    grid = Sweeping(
        tmp_path, "mapping=rapidun", "mapping.tau_f=0.3,0.7", "poison.max_steps=60", "unlearning.max_steps=60",
        "resources.mem_gb=1.5",
    )  # fmt: skip
    for stage in ("poison", "influence", "unlearning", "evaluation"):
        driver = grid.spawn()

        def running(stage: str = stage) -> list[str]:
            found = [status for status in grid.statuses().values() if status["state"] == "running"]
            return [status["job_id"] for status in found if status["stage"] == stage]

        wait_until(lambda: running() or driver.poll() is not None, tell=grid.tell)  # noqa: B023
        assert driver.poll() is None, driver.communicate()[0]
        subprocess.run(["scancel", *running()], check=True, env=os.environ)
        printed, _ = driver.communicate(timeout=900)
        assert driver.returncode == 1, printed
        assert "cancelled" in printed and "Traceback" not in printed
    assert "2 cells: 2 done" in grid.run()
    made = [f"{manifest['stage']}/{manifest['fingerprint']}" for manifest in grid.manifests()]
    assert len(made) == len(set(made)) and set(made) >= grid.planned()
    assert not [*grid.store.glob("*/*.part"), *grid.store.glob("*/*.gone")]
