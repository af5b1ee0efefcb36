"""What stands between a sweep and SLURM's queue: a full one, limits, an sbatch that hangs, Ctrl-C in the middle.

Nothing waits for minutes without a word, and no job runs that the sweep's folder does not know.
"""

import json
import os
import re
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import use
from grids import patience
from launching import DONE, Sweep
from sweeps import Sweeping, finished, wait_until

from rapidun.base.errors import RapidunError
from rapidun.sweep.launcher import NotNow, Phase
from rapidun.sweep.launchers.slurm import sbatch

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
# as this version of SLURM says it, or another one
NINE = ["mapping=rapidun", "mapping.tau_f=0.3,0.5,0.7", "unlearning=rapidun,graddiff,idk_sft", "resources.mem_gb=1.5"]
FULL = "queue full|unable to accept job"

pytestmark = pytest.mark.slurm


def shim(folder: Path, text: str) -> Path:
    """A folder with an `sbatch` of these lines, in which REAL is the real one and CALLS counts the calls."""
    path = folder / "bin" / "sbatch"
    path.parent.mkdir(exist_ok=True)
    calls = folder / "calls"
    head = f"#!/bin/bash\necho >> {calls}; CALLS=$(wc -l < {calls}); REAL={shutil.which('sbatch')}\n"
    path.write_text(head + text)
    path.chmod(0o755)
    return path.parent


def first_in_path(monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def queued(cluster: Cluster) -> list[str]:
    return cluster.command("squeue", "-h", "-r", "-o", "%i").split()


def known(cluster: Cluster) -> list[str]:
    """The jobs that the controller has not forgotten yet: those that ended a moment ago take room as well."""
    return re.findall(r"^JobId=(\S+)", cluster.command("scontrol", "-o", "show", "job", check=False), re.MULTILINE)


@pytest.fixture(scope="module")
def queue_of_ten(tmp_path_factory):
    """A cluster that holds ten jobs, those included that ended less than two seconds ago."""
    if reason := Cluster.missing():
        pytest.skip(f"no SLURM here: {reason}")
    with Cluster(tmp_path_factory.mktemp("narrow"), cpus=8, gpus=0, max_job_count=10, min_job_age=2) as running:
        yield running


@pytest.fixture
def narrow(cluster, queue_of_ten):
    """That cluster in place of the others', for one test, and empty."""
    with use(queue_of_ten):
        wait_until(lambda: not known(queue_of_ten))
        yield queue_of_ten


@pytest.fixture
def sweep(cluster, tmp_path):
    made = Sweep(tmp_path)
    yield made
    made.launcher.cancel(made.handles)


def test_a_queue_that_is_full_takes_what_fits_and_says_so(narrow, tmp_path):
    """24 jobs where ten fit: arrays of what has room at once, the rest later; sbatch's two minutes are not waited for.

    An array of 24 is more than the queue can ever hold: it is cut, or it would never be taken.
    """
    sweep = Sweep(tmp_path)
    jobs = [sweep.job(f"j{i}", "sleep", seconds=1) for i in range(24)]
    began = time.monotonic()
    with pytest.raises(NotNow, match=FULL):
        sweep.launcher.submit(jobs, handles={}, on_taken=sweep.handles.update)
    assert time.monotonic() - began < patience(30)
    assert 8 <= len(sweep.handles) <= 10
    arrays = {handle.partition("_")[0] for handle in sweep.handles.values()}
    assert 2 <= len(arrays) <= 4
    while len(sweep.handles) < 24:
        rest = [job for job in jobs if job.id not in sweep.handles]
        try:
            sweep.launcher.submit(rest, handles=sweep.handles, on_taken=sweep.handles.update)
        except NotNow:
            time.sleep(0.5)
        assert time.monotonic() - began < patience(120)
    assert {state.phase for state in sweep.wait().values()} <= {Phase.done, Phase.gone}
    assert all(len(sweep.seen(job.id)) == 1 for job in jobs)
    # no token is left of what was not taken
    tokens = [path for path in sweep.launcher.folder.glob("*.json")]
    assert sorted(id for path in tokens for id in json.loads(path.read_text())) == sorted(job.id for job in jobs)


def test_a_sweep_through_a_narrow_queue(narrow, tmp_path):
    """Nine cells and three shared jobs where ten fit. Detached: exit status 1, and how many are left.

    The same command submits those, as there is room, and no other a second time.
    """
    grid = Sweeping(tmp_path, *NINE)
    printed = grid.run("sweep.detach=true", expect=1)
    taken = {id: handle for id, handle in grid.handles.items() if handle}
    assert f"submitted {len(taken)} jobs" in printed and f"{12 - len(taken)} jobs are not submitted" in printed
    assert "no more jobs are taken now" in printed and re.search(FULL, printed)
    assert 3 < len(taken) <= 10
    printed = grid.run()
    assert "9 cells: 9 done" in printed
    assert taken.items() <= grid.handles.items()
    grid.assert_each_made_once()


def test_ctrl_c_while_the_queue_is_full(narrow, tmp_path):
    """Answered within seconds; what was submitted is cancelled, nothing is left in the queue."""
    grid = Sweeping(tmp_path, *NINE, "poison.max_steps=400")
    driver = grid.spawn(PYTHONUNBUFFERED="1")
    wait_until(lambda: sum(handle is not None for handle in grid.handles.values()) >= 9, tell=grid.tell)
    began = time.monotonic()
    driver.send_signal(signal.SIGINT)
    printed = finished(driver, expect=130)
    assert time.monotonic() - began < patience(20)
    assert "interrupted: jobs cancelled" in printed
    wait_until(lambda: not queued(narrow))


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "sbatch: error: AssocMaxSubmitJobLimit",
        "sbatch: error: AssocGrpSubmitJobsLimit",
    ],
)
def test_limits_of_a_qos_or_account_are_waited_for(sweep, monkeypatch, said):
    """The third sbatch is refused as SLURM refuses over MaxSubmitJobs: what was taken before stands."""
    refusal = f'echo "{said}" >&2; echo "sbatch: error: Batch job submission failed: {POLICY}" >&2; exit 1\n'
    first_in_path(monkeypatch, shim(sweep.folder, f'[ $CALLS -le 2 ] && exec $REAL "$@"\n{refusal}'))
    jobs = [sweep.job(f"j{i}", "note", resources={"timeout_min": 5 + i}) for i in range(3)]
    with pytest.raises(NotNow, match=said.partition("error: ")[2]):
        sweep.launcher.submit(jobs, handles={}, on_taken=sweep.handles.update)
    assert list(sweep.handles) == ["j0", "j1"]
    assert set(sweep.wait().values()) == {DONE}


def test_a_limit_without_a_name_is_refused_where_nothing_of_ours_fills_it(sweep, monkeypatch):
    """`violates accounting/QOS policy` alone may mean a job that is too long: with no job of ours there, it does."""
    refusal = f'echo "sbatch: error: Batch job submission failed: {POLICY}" >&2; exit 1\n'
    first_in_path(monkeypatch, shim(sweep.folder, f'[ $CALLS = 1 ] && exec $REAL "$@"\n{refusal}'))
    sweep.submit(sweep.job("long", "sleep"))
    with pytest.raises(NotNow, match="violates"):
        sweep.submit(sweep.job("second", "note"))
    sweep.launcher.cancel(sweep.handles)
    sweep.wait("long")
    with pytest.raises(RapidunError, match=r"took no jobs: .*violates.*Check cluster") as caught:
        sweep.submit(sweep.job("third", "note"))
    assert not isinstance(caught.value, NotNow)


def test_an_sbatch_that_hangs_after_slurm_has_taken_the_jobs(sweep, monkeypatch, cluster):
    """They are found again by their comment, get what to call, and run once."""
    # long enough for the true sbatch on a busy machine
    monkeypatch.setattr(sbatch, "PATIENCE_S", 10.0)
    first_in_path(monkeypatch, shim(sweep.folder, '$REAL "$@" > /dev/null; exec sleep 600\n'))
    sweep.submit(*[sweep.job(f"j{i}", "note") for i in range(3)])
    assert set(sweep.wait().values()) == {DONE}
    assert [len(sweep.seen(f"j{i}")) for i in range(3)] == [1, 1, 1]


def test_an_sbatch_that_hangs_before_slurm_has_heard_of_it(sweep, monkeypatch, cluster):
    monkeypatch.setattr(sbatch, "PATIENCE_S", 2.0)
    first_in_path(monkeypatch, shim(sweep.folder, '[ $CALLS = 1 ] && exec sleep 600; exec $REAL "$@"\n'))
    job = sweep.job("j", "note")
    began = time.monotonic()
    with pytest.raises(NotNow, match="sbatch did not end within 2 s"):
        sweep.submit(job)
    assert time.monotonic() - began < patience(20)
    sweep.submit(job)
    assert sweep.wait() == {"j": DONE}
    assert len(sweep.seen("j")) == 1


def test_a_controller_that_takes_the_jobs_after_we_gave_up(cluster, tmp_path, tmp_path_factory, monkeypatch):
    """It was stopped amid sbatch: nobody knows whether it took the jobs. Back again, they run once."""
    with Cluster(tmp_path_factory.mktemp("away"), cpus=4, gpus=0) as away, use(away):
        monkeypatch.setattr(sbatch, "PATIENCE_S", 2.0)
        monkeypatch.setattr(sbatch, "TIMEOUT_S", 1.0)
        sweep = Sweep(tmp_path)
        jobs = [sweep.job(f"j{i}", "note") for i in range(2)]
        # settings of the site, before it goes
        assert sweep.launcher.array_size() == 1001
        pid = int((away.folder / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotNow):
                sweep.submit(*jobs)
            # while it is away, the next try waits too
            with pytest.raises(NotNow):
                sweep.submit(*jobs)
        finally:
            os.kill(pid, signal.SIGCONT)

        def taken() -> bool:
            try:
                sweep.submit(*jobs)
            except NotNow:
                return False
            return True

        wait_until(taken)
        assert set(sweep.wait().values()) == {DONE}
        assert [len(sweep.seen(job.id)) for job in jobs] == [1, 1]


def test_ctrl_c_amid_an_sbatch_that_hangs(cluster, tmp_path):
    """The second sbatch hangs: Ctrl-C is answered within seconds, the first one's job is known and cancelled."""
    grid = Sweeping(tmp_path / "here", "mapping=rapidun", "mapping.tau_f=0.3,0.7", "poison.max_steps=400")
    grid.start.mkdir()
    path = shim(tmp_path, '[ $CALLS = 1 ] && exec $REAL "$@"\nexec sleep 600\n')
    driver = grid.spawn(PATH=f"{path}:{os.environ['PATH']}")
    wait_until(lambda: any(grid.handles.values()))
    wait_until(lambda: (tmp_path / "calls").read_text().count("\n") == 2)
    [first] = [handle for handle in grid.handles.values() if handle]
    began = time.monotonic()
    driver.send_signal(signal.SIGINT)
    printed = finished(driver, expect=130)
    assert time.monotonic() - began < patience(20)
    assert "interrupted: jobs cancelled" in printed
    wait_until(lambda: first not in queued(cluster))


def test_killed_between_two_arrays(cluster, tmp_path):
    """kill -9 within the third sbatch: the three jobs of the two before it are noted, and go on."""
    grid = Sweeping(
        tmp_path / "here", "mapping=rapidun", "mapping.tau_f=0.3,0.7", "seed=0,1", "cluster.max_array_size=2"
    )
    grid.start.mkdir()
    path = shim(tmp_path, '[ $CALLS -le 2 ] && exec $REAL "$@"\nkill -9 $PPID\n')
    finished(grid.spawn(PATH=f"{path}:{os.environ['PATH']}"), expect=-signal.SIGKILL)
    noted = {id: handle for id, handle in grid.handles.items() if handle}
    assert len(noted) == 3 and len(grid.handles) == 7
    assert f"{len(noted)} jobs under way" in grid.command("status", str(grid.dir))
    grid.run()
    assert noted.items() <= grid.handles.items()
    assert grid.states() == {"done": 4}
    grid.assert_each_made_once()


def test_scripts_that_hold_a_secret_are_for_the_owner_alone(sweep):
    """cluster.environment stands in the script, which SLURM has copied when sbatch ends."""
    made = Sweep(sweep.folder, environment={"SITE_TOKEN": "s3cret-of-the-site"})
    made.submit(*[made.job(f"j{i}", "note") for i in range(2)], made.job("alone", "note", needs=("j0",)))
    assert set(made.wait().values()) == {DONE}
    holders = [path for path in made.folder.rglob("*") if path.is_file() and b"s3cret-of-the-site" in path.read_bytes()]
    assert len(holders) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}
