"""What a job's process does with its units: each end leaves its trace in a run folder, and the next one runs.

The pipeline is a stand-in that writes the status which the test asks for; the end-to-end tests run the real one.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapidun.base import preemption, processes
from rapidun.base.files import read_json, write_json
from rapidun.base.processes import PeerFailed
from rapidun.config.compose import compose_config
from rapidun.config.plain import plain
from rapidun.pipeline.folder import RunFolder
from rapidun.sweep import worker
from rapidun.sweep.folder import SweepFolder, read_state
from rapidun.sweep.worker import JobFailed, run_job


class Job:
    """A job file of a sweep folder, and what its units did."""

    def __init__(self, path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.sweep = SweepFolder(path / "grid")
        self.config = config
        self.ran: list[str] = []
        self.does: dict[str, Callable[[], object]] = {}
        monkeypatch.setattr(worker, "run_pipeline", self.run_pipeline)

    def run_pipeline(self, cfg: Any, *, overrides: Any, config_yaml: str, in_sweep: Any) -> None:
        """Opens and closes the run folder as the real one does."""
        name = str(Path(cfg.run_dir).resolve().relative_to(self.sweep.path.resolve()))
        self.ran.append(name)
        folder = RunFolder(Path(cfg.run_dir))
        folder.open(config=plain(cfg), config_yaml=config_yaml, overrides=overrides, job=in_sweep.job)
        folder.start_stage("unlearning")
        try:
            self.does.get(name, lambda: None)()
        except BaseException as error:
            folder.fail(error)
            raise
        folder.finish({"name": name})

    def write(self, *names: str, requires: list[dict[str, str]] | None = None, **more: Any) -> Path:
        units = [
            {
                "folder": name, "overrides": ["seed=1"], "axes": {"seed": "1"}, "command": ["seed=1"],
                "config": self.config, "trial": None,
                "only": name.removeprefix("stages/").replace("-", "/") if name.startswith("stages/") else None,
            }
            for name in names
        ]  # fmt: skip
        file = self.sweep.path / "jobs" / "job.json"
        content = {"id": "job", "units": units, "requires": requires or [], "max_failures": None}
        write_json(file, {**content, "shared_process": False, "heavy": False, **more})
        return file

    def state(self, name: str) -> tuple[str, str]:
        found = read_state(self.sweep.folder(name))
        return found.state, found.error


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return plain(compose_config(["debug=fast"]))


@pytest.fixture
def job(tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    preemption.clear()
    yield Job(tmp_path, config, monkeypatch)
    preemption.clear()


def raising(error: BaseException) -> Callable[[], object]:
    def do() -> None:
        raise error

    return do


def test_a_failed_cell_does_not_keep_the_next_from_running(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three the second raises: all run, its traceback is in the log, and the job itself fails with the count."""
    job.does["b"] = raising(ValueError("this cell is broken"))
    with pytest.raises(JobFailed, match="1 of 3 failed"):
        run_job(str(job.write("a", "b", "c")))
    assert job.ran == ["a", "b", "c"]
    assert job.state("b") == ("failed", "ValueError: this cell is broken")
    assert job.state("a")[0] == job.state("c")[0] == "done"
    log = capsys.readouterr().err
    assert "Traceback" in log and "b: failed: ValueError: this cell is broken" in log


def test_a_job_queued_again_skips_what_is_done(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    file = job.write("a", "b")
    run_job(str(file))
    job.sweep.mark("b", "", state="interrupted")
    run_job(str(file))
    assert job.ran == ["a", "b", "b"]
    assert "a: not run: done before" in capsys.readouterr().out
    assert read_json(job.sweep.folder("b") / "status.json")["restarts"] == 1


def test_preempted_amid_a_cell(job: Job) -> None:
    """The signal ends the job: the cell says interrupted and in which stage, the next one has not begun."""
    with preemption.install():
        job.does["a"] = lambda: os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(preemption.Preempted, match="SIGUSR2"):
            run_job(str(job.write("a", "b")))
    assert job.ran == ["a"]
    state = read_state(job.sweep.folder("a"))
    assert (state.state, state.stage) == ("interrupted", "unlearning")
    assert job.state("b")[0] == "waiting"
    # asked before the first cell: nothing begins
    with pytest.raises(preemption.Preempted):
        run_job(str(job.write("b")))
    assert job.ran == ["a"]


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"state": "failed", "error": {"message": "TrainingDiverged: loss is nan", "traceback": ""}},
         "failed: TrainingDiverged: loss is nan"),
        ({"state": "running", "stage": "poison"}, "its job ended amid poison"),
        (None, "its job ended without making it"),
    ],
)  # fmt: skip
def test_what_a_cell_needs_is_missing(job: Job, left: dict[str, Any] | None, said: str) -> None:
    """It fails at once, with the cause of what should have made it, and builds nothing."""
    if left:
        write_json(job.sweep.folder("stages/poison-0123") / "status.json", {"stages": {}, **left})
    need = {
        "artifact": "poison/0123",
        "path": str(job.sweep.path / "store/poison/0123"),
        "folder": "stages/poison-0123",
    }
    file = job.write("a", requires=[need])
    with pytest.raises(JobFailed):
        run_job(str(file))
    assert job.ran == []
    assert job.state("a") == ("failed", f"UpstreamFailed: needs poison/0123, which is not there ({said})")
    # made meanwhile: the same job file runs
    write_json(Path(need["path"]) / "manifest.json", {})
    run_job(str(file))
    assert job.ran == ["a"]


def test_shared_artifacts_of_one_job_need_each_other(job: Job) -> None:
    """A mapping behind the influence that failed is not made: it would compute the influence once more on its way."""
    job.does["stages/influence-01"] = raising(RuntimeError("no memory"))
    with pytest.raises(JobFailed, match="2 of 2"):
        run_job(str(job.write("stages/influence-01", "stages/mapping-02")))
    assert job.ran == ["stages/influence-01"]
    assert job.state("stages/mapping-02") == (
        "failed",
        "UpstreamFailed: needs influence/01, which is not there (failed: RuntimeError: no memory)",
    )


def test_enough_failures_end_the_sweep_from_within_a_job(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.does = {name: raising(ValueError(name)) for name in "abcd"}
    with pytest.raises(JobFailed, match="2 of 4"):
        run_job(str(job.write("a", "b", "c", "d", max_failures=2)))
    assert job.ran == ["a", "b"]
    assert job.state("c")[0] == "waiting"
    assert "2 failed" in str(job.sweep.stopped())
    assert "c: not run: 2 failed" in capsys.readouterr().out


def test_pruned_counts_as_well(job: Job) -> None:
    job.does["a"] = raising(preemption.Pruned(0.5, 3))
    run_job(str(job.write("a", "b")))
    assert job.ran == ["a", "b"]
    assert job.state("a")[0] == "pruned"


def test_another_process_of_the_cell_was_stopped(job: Job) -> None:
    """Rank 1 got the signal first: rank 0 hears of it, leaves `interrupted`, and stops the job as well."""
    job.does["a"] = raising(PeerFailed("rank 1 failed: Preempted: SIGUSR2", rank=1, kind="Preempted"))
    with pytest.raises(preemption.Preempted, match="rank 1"):
        run_job(str(job.write("a", "b")))
    assert job.ran == ["a"]
    assert job.state("a")[0] == "interrupted"


def test_another_process_of_the_cell_failed(job: Job) -> None:
    job.does["a"] = raising(PeerFailed("rank 1 on node2 failed: ValueError: x", rank=1, kind="ValueError"))
    with pytest.raises(JobFailed):
        run_job(str(job.write("a", "b")))
    assert job.ran == ["a", "b"]
    assert job.state("a") == ("failed", "PeerFailed: rank 1 on node2 failed: ValueError: x")


def test_a_broken_connection_between_processes_ends_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes next would fail for no fault of its own: it stays untouched, for a new start of the processes."""

    def share(value: Any) -> Any:
        if job.ran:
            raise RuntimeError("processes: need a new start, since a failure broke the process group (x)")
        return value

    monkeypatch.setattr(processes, "share", share)
    job.does["a"] = raising(ValueError("amid a training"))
    with pytest.raises(RuntimeError, match="new start"):
        run_job(str(job.write("a", "b")))
    assert job.ran == ["a"]
    assert [job.state(name)[0] for name in "ab"] == ["failed", "waiting"]


def test_others_hear_of_a_failure(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell runs within failing_together, so that a process that fails alone does not leave the others waiting."""
    told: list[BaseException] = []
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "is_main", lambda: True)
    monkeypatch.setattr(processes, "share", lambda value: value)
    monkeypatch.setattr(processes, "report_failure", told.append)
    job.does["a"] = raising(ValueError("alone"))
    with pytest.raises(JobFailed):
        run_job(str(job.write("a")))
    assert [str(error) for error in told] == ["alone"]


def test_a_damaged_status_is_a_failed_cell_and_runs_again(job: Job) -> None:
    file = job.write("a")
    (job.sweep.folder("a")).mkdir(parents=True)
    (job.sweep.folder("a") / "status.json").write_text('{"state": "runn')
    assert job.state("a")[0] == "failed"
    job.sweep.mark("a", "", state="waiting")
    run_job(str(file))
    assert job.state("a") == ("done", "")
    assert json.loads((job.sweep.folder("a") / "overrides.json").read_text())["task"] == ["seed=1"]
