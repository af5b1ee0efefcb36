"""The one list of launchers: what derives from it, and that a new one is one line and one file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from hydra_plugins.rapidun_plugins import launchers as plugins
from rapidun.base.errors import ConfigError
from rapidun.config.keys import HYDRA_CHOICES
from rapidun.config.sweep import LAUNCHERS, ClusterConfig
from rapidun.sweep.launcher import Launcher, LauncherContext
from rapidun.sweep.launchers.registry import launcher_class, make_launcher

ROOT = Path(__file__).resolve().parents[2]
TOY = """
from rapidun.sweep.launchers.inprocess import InProcessLauncher


class ToyLauncher(InProcessLauncher):
    def script(self, jobs):
        return "the toy's script"
"""


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_of_the_list_can_be_made(tmp_path: Path, name: str) -> None:
    made = make_launcher(name, LauncherContext(sweep_dir=tmp_path, cluster=ClusterConfig()))
    assert type(made) is launcher_class(name) and Launcher in type(made).__mro__
    assert made.unnoted_handles([], drop_broken=False) == {}


def test_what_they_can_do() -> None:
    flags = ("submits_ahead", "detachable", "outlives_driver", "one_at_a_time", "shares_process", "runs_elsewhere")
    assert {name: [flag for flag in flags if getattr(launcher_class(name), flag)] for name in LAUNCHERS} == {
        "basic": ["one_at_a_time", "shares_process"],
        "joblib": ["shares_process"],
        "rapidun_slurm": ["submits_ahead", "detachable", "outlives_driver", "runs_elsewhere"],
        "rapidun_local": ["outlives_driver"],
    }


def test_overrides_completion_and_hydra_read_the_list() -> None:
    assert tuple(HYDRA_CHOICES["hydra/launcher"]) == tuple(LAUNCHERS)
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    ours = {name: stored[f"{name}.yaml"].node for name in LAUNCHERS if name != "basic"}
    assert all(
        node.name == name and node._target_.endswith(plugins.RapidunLauncher.__name__) for name, node in ours.items()
    )


def test_another_name_is_refused(tmp_path: Path) -> None:
    context = LauncherContext(sweep_dir=tmp_path, cluster=ClusterConfig())
    with pytest.raises(ConfigError, match="need one of basic, joblib, rapidun_slurm, rapidun_local, got pbs"):
        make_launcher("pbs", context)


def test_a_new_launcher_is_one_line_and_its_file(tmp_path: Path) -> None:
    """In a copy of the tree: the command line takes it, and its jobs run."""
    copy = tmp_path / "copy"
    for name in ("rapidun", "hydra_plugins", "conf", "data", "sweep.py"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    (copy / "rapidun" / "sweep" / "launchers" / "toy.py").write_text(TOY)
    settings = copy / "rapidun" / "config" / "sweep.py"
    head, line, tail = settings.read_text().partition("LAUNCHERS = {\n")
    settings.write_text(f'{head}{line}    "toy": "rapidun.sweep.launchers.toy.ToyLauncher",\n{tail}')

    def sweep(*more: str) -> str:
        done = subprocess.run(
            [
                sys.executable, str(copy / "sweep.py"), "-m", "debug=fast", "stages=[data]", "seed=1,2",
                "hydra/launcher=toy", "sweep.name=grid", *more,
            ],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "200"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "the toy's script" in sweep("sweep.dry_run=true")
    assert "2 cells: 2 done" in sweep()
