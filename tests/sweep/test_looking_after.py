"""`rapidun sweep status|collect|resume|retry`: what each says, waits for and starts."""

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rapidun.base.errors import ConfigError
from rapidun.base.files import read_json, write_json
from rapidun.cli.main import main
from rapidun.sweep import ending
from rapidun.sweep.ending import wait_for_cancelled
from rapidun.sweep.folder import SweepFolder, SweepLock
from rapidun.sweep.launcher import JobState, Launcher, Phase

COMMAND = ["-m", "debug=fast", "stages=[data]", "sweep.name=light", "store_dir=store", "resources.num_threads=1"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main([*COMMAND, "data.builtin.num_forget=4,5,6"]) == 0
    return root


@pytest.fixture
def sweep(launched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cells, done."""
    shutil.copytree(launched, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    path = Path("outputs/sweeps/light")
    # where it was launched from is another place now
    write_json(path / "sweep.json", {**read_json(path / "sweep.json"), "directory": str(tmp_path / "copy")})
    return path


def cells(sweep: Path) -> list[Path]:
    return [sweep / cell["hash"] for cell in read_json(sweep / "sweep.json")["cells"]]


def said_by(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["sweep", *argv])
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def cut_off(sweep: Path) -> None:
    """As a kill of the launching process leaves it: one cell amid its work, one not begun."""
    _, amid, waiting = cells(sweep)
    write_json(amid / "status.json", {**read_json(amid / "status.json"), "state": "running", "stage": "data"})
    shutil.rmtree(waiting)


def test_status_says_interrupted(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_off(sweep)
    status, said = said_by(capsys, "status", str(sweep))
    assert status == 1
    assert "1 of 3 cells: 1 done, 1 interrupted, 1 waiting" in said
    assert (
        "interrupted: nothing is under way, 2 cells are left. rapidun sweep resume outputs/sweeps/light goes on" in said
    )
    assert "the process that ran it is gone" in said
    # somebody drives it: they wait and run
    with SweepLock(SweepFolder(sweep)):
        status, said = said_by(capsys, "status", str(sweep))
    assert status == 0 and "1 done, 1 running (data), 1 waiting" in said and "interrupted" not in said


def test_status_counts_the_cells_of_every_launch(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another command with the same sweep.name: its plan tells of its own cells, the folder holds all."""
    assert main([*COMMAND, "data.builtin.num_forget=7,8", "hydra/launcher=joblib"]) == 0
    assert len(cells(sweep)) == 2
    status, said = said_by(capsys, "status", str(sweep))
    assert status == 0 and "5 of 5 cells: 5 done" in said
    status, said = said_by(capsys, "collect", str(sweep))
    assert status == 0 and "5 cells: 5 done" in said


def test_collect_starts_nothing_and_resume_does(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_off(sweep)
    (sweep / "summary.csv").unlink()
    before = {path: path.read_bytes() for path in sweep.glob("*/status.json")}
    jobs = (sweep / "jobs.json").read_bytes()
    status, said = said_by(capsys, "collect", str(sweep))
    assert status == 1 and "rapidun sweep resume outputs/sweeps/light" in said
    assert {path: path.read_bytes() for path in sweep.glob("*/status.json")} == before
    assert (sweep / "jobs.json").read_bytes() == jobs
    assert (sweep / "summary.csv").is_file() and (sweep / "runs.csv").is_file()
    status, said = said_by(capsys, "resume", str(sweep))
    assert status == 0 and "3 cells (2 to run, 1 done)" in said and "sweep: 3 cells: 3 done" in said
    status, said = said_by(capsys, "resume", str(sweep))
    assert status == 0 and "sweep: 3 cells: 3 done" in said


def test_resume_leaves_failed_cells_as_the_sweep_was_told(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """sweep.retry_failed=false, launched so: `resume` is the command, `retry` tries them again."""
    plan = read_json(sweep / "sweep.json")
    plan["configs"]["first"]["sweep"]["retry_failed"] = False
    write_json(sweep / "sweep.json", plan)
    failed = cells(sweep)[1] / "status.json"
    write_json(failed, {**read_json(failed), "state": "failed", "error": {"message": "x", "traceback": ""}})
    status, said = said_by(capsys, "resume", str(sweep))
    assert status == 1 and "1 left failed" in said
    status, said = said_by(capsys, "retry", str(sweep))
    assert status == 0 and "sweep: 3 cells: 3 done" in said


def test_collect_writes_parquet_on_request(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(capsys, "status", str(sweep), "--parquet", "runs.parquet")[0] == 2
    assert said_by(capsys, "collect", str(sweep), "--parquet", "runs.parquet")[0] == 0
    table = pq.read_table("runs.parquet").to_pydict()
    assert sorted(table["data.builtin.num_forget"]) == [4, 5, 6]


# cancelled, and not over yet


class Ending(Launcher):
    """A job is seen running so many times, then it has failed."""

    outlives_driver = True

    def __init__(self, left: int) -> None:
        self.left = left
        self.asked: list[list[str]] = []

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        self.asked.append(sorted(handles))
        self.left -= 1
        return dict.fromkeys(handles, JobState(Phase.running if self.left >= 0 else Phase.failed, "cancelled"))


def entry(handle: str, **more: object) -> dict[str, object]:
    return {"launcher": "x", "launch": 1, "handle": handle, "folders": [], "needs": [], "over": False, **more}


def test_a_new_launch_waits_for_jobs_that_are_completing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C (jobs.json says so) or by `rapidun sweep cancel` (stop.json); of other jobs it is not asked."""
    monkeypatch.setattr(ending, "LOOK_SECONDS", 0.0)
    folder, launcher, said = SweepFolder(tmp_path), Ending(2), []
    folder.stop("cancelled", handles=["7_1"])
    jobs = {"a": entry("7_1"), "b": entry("7_2", cancelled=True), "c": entry("7_3"), "d": entry("7_4", over=True)}
    wait_for_cancelled(folder, jobs, lambda name: launcher, say=said.append)
    assert launcher.asked == [["a", "b"]] * 3
    assert said == ["waiting for 2 cancelled jobs to end"]


def test_nothing_cancelled_is_no_wait(tmp_path: Path) -> None:
    said: list[str] = []
    launcher = Ending(100)
    wait_for_cancelled(SweepFolder(tmp_path), {"c": entry("7_3")}, lambda name: launcher, say=said.append)
    assert (launcher.asked, said) == ([], [])


def test_a_driver_that_was_told_to_stop_is_waited_for(tmp_path: Path) -> None:
    """Without the word to stop a second driver is refused at once."""
    folder = SweepFolder(tmp_path / "grid")
    entered, leave = threading.Event(), threading.Event()

    def drive() -> None:
        with SweepLock(folder):
            entered.set()
            leave.wait(20)

    driver = threading.Thread(target=drive)
    driver.start()
    assert entered.wait(20)
    with pytest.raises(ConfigError, match="for this process alone"), SweepLock(folder):
        pass
    folder.stop("cancelled by rapidun sweep cancel")
    threading.Timer(0.3, leave.set).start()
    with SweepLock(folder):
        # not before the other one has left
        assert leave.is_set()
    driver.join(20)
