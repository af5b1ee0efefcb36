"""What a driver that was killed while it submitted left behind, and a sweep that is looked after from elsewhere."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from rapidun.base.errors import ConfigError
from rapidun.base.files import write_json
from rapidun.cli import sweep_actions as command
from rapidun.config.sweep import ClusterConfig
from rapidun.sweep.drive import watched_entry
from rapidun.sweep.folder import SweepFolder
from rapidun.sweep.jobs import known_jobs
from rapidun.sweep.launcher import LauncherContext
from rapidun.sweep.launchers.inprocess import InProcessLauncher
from rapidun.sweep.launchers.slurm import tokens
from rapidun.sweep.launchers.slurm.commands import SlurmUnreachable


def entry(launcher: str, handle: str | None, *, over: bool = False) -> dict:
    return {"launcher": launcher, "launch": 1, "handle": handle, "folders": [], "needs": [], "over": over}


class Finder(InProcessLauncher):
    """A launcher that knows where job `b` is."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bool]] = []

    def unnoted_handles(self, ids: Sequence[str], *, drop_broken: bool) -> dict[str, str]:
        self.asked.append((list(ids), drop_broken))
        return {"b": "7_1"}


@pytest.mark.parametrize("driving", [True, False])
def test_only_jobs_without_a_handle_are_looked_for(tmp_path: Path, driving: bool) -> None:
    folder = SweepFolder(tmp_path)
    jobs = {
        "a": entry("slurm", "7_0"), "b": entry("slurm", None), "c": entry("slurm", None),
        "d": entry("slurm", None, over=True), "e": entry("basic", None),
    }  # fmt: skip
    folder.note_jobs(jobs)
    finder = Finder()
    other = InProcessLauncher(LauncherContext(sweep_dir=tmp_path, cluster=ClusterConfig()))
    found = known_jobs(folder, lambda name: finder if name == "slurm" else other, driving=driving)
    assert finder.asked == [(["b", "c"], driving)]
    assert found == jobs | {"b": entry("slurm", "7_1")}
    # looking changes no file
    assert folder.jobs() == jobs


def test_a_token_leads_from_slurm_back_to_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of three and a job alone are ours; another sweep's token, and a user's comment, are not."""
    array, alone = tokens.new_comment(tmp_path, ["x", "y", "z"]), tokens.new_comment(tmp_path, ["w"])
    shown = f"41|{array}\n41|{array}\n42|{alone}\n43|rapidun:0123456789abcdef\n44|../../etc/passwd\n45|(null)\n"
    monkeypatch.setattr(tokens, "slurm", lambda *command, timeout_s: shown)
    found = tokens.unnoted_handles(tmp_path, ["w", "x", "z"])
    assert found == {"w": "42", "x": "41_0", "z": "41_2"}
    (tmp_path / "41_0_submitted.pkl").touch()
    (tmp_path / "42_submitted.pkl").touch()
    assert tokens.without_call(tmp_path, found) == {"z": "41_2"}


def test_a_controller_that_is_away_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*command: str, timeout_s: float) -> str:
        raise SlurmUnreachable("SLURM does not answer")

    monkeypatch.setattr(tokens, "slurm", away)
    tokens.new_comment(tmp_path, ["w"])
    assert tokens.unnoted_handles(tmp_path, ["w"]) == {}


def test_a_job_that_is_watched_again_keeps_its_resources(tmp_path: Path) -> None:
    """One that has to be started again asks for what it asked for before."""
    asked = {"num_threads": 3, "num_gpus": 1, "timeout_min": 17}
    write_json(tmp_path / "jobs" / "a.json", {"units": [{"config": {"resources": asked}}]})
    watched = watched_entry("a", entry("slurm", "7"), SweepFolder(tmp_path))
    assert {name: getattr(watched.job.resources, name) for name in asked} == asked
    assert watched.handle == "7"


@pytest.mark.parametrize(
    ("launcher", "driven", "stopped", "state"),
    [
        ("basic", True, False, "running"), ("joblib", True, False, "running"), ("rapidun_local", True, False, "lost"),
        ("basic", False, False, "interrupted"), ("joblib", False, True, "interrupted"),
        ("rapidun_local", False, False, "lost"), ("rapidun_slurm", False, True, "interrupted"),
    ],
)  # fmt: skip
def test_what_a_cell_that_says_running_is_told_by_its_job(
    tmp_path: Path, launcher: str, driven: bool, stopped: bool, state: str
) -> None:
    """Whoever looks on from another process does not see jobs of the driver's own; with the driver they are gone."""
    write_json(tmp_path / "a" / "status.json", {"state": "running", "stage": "poison"})
    jobs = {"x": entry(launcher, "h") | {"folders": ["a"]}}
    folder = SweepFolder(tmp_path)
    if stopped:
        folder.stop("cancelled")
    assert command.settle(folder, ["a"], jobs, live={}, driven=driven)["a"].state == state


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep launched from tmp_path/project, looked at from tmp_path/elsewhere."""
    folder = tmp_path / "project" / "outputs" / "sweeps" / "grid"
    write_json(folder / "sweep.json", {"directory": str(tmp_path / "project")})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_going_on_starts_where_the_sweep_was_launched(launched: Path, tmp_path: Path) -> None:
    folder = command._enter(SweepFolder(Path(os.path.relpath(launched))))
    assert Path.cwd() == tmp_path / "project"
    assert folder.path == Path("outputs/sweeps/grid")


def test_a_project_that_was_moved_goes_on_in_its_new_place(launched: Path, tmp_path: Path) -> None:
    (tmp_path / "project").rename(tmp_path / "moved")
    command._enter(SweepFolder(Path("../moved/outputs/sweeps/grid")))
    assert Path.cwd() == tmp_path / "moved"


def test_a_sweep_folder_that_was_taken_elsewhere_does_not(launched: Path, tmp_path: Path) -> None:
    launched.rename(tmp_path / "grid")
    with pytest.raises(ConfigError, match=r"below the directory that it was launched from .*Move it back"):
        command._enter(SweepFolder(tmp_path / "grid"))
    assert json.loads((tmp_path / "grid" / "sweep.json").read_text())
