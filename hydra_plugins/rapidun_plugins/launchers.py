"""hydra/launcher=NAME for every launcher of rapidun/config/sweep.py; `basic` is Hydra's own.

rapidun's sweepers drive launchers by the protocol of rapidun/sweep/launcher.py, which can watch, cancel and
resume; Hydra's `launch`, which can only wait for everything, is here for other sweepers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig

from rapidun.config import extensions
from rapidun.config.sweep import LAUNCHERS


class RapidunLauncher(Launcher):
    """Runs cells through the launcher of `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing to prepare: jobs are composed from their overrides."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run a batch; each return value is the exit status of the whole batch."""
        from rapidun.sweep.entry import run_rows

        status = run_rows(job_overrides, launcher_name=self.name)
        made = []
        for row in job_overrides:
            job = JobReturn(overrides=list(row), status=JobStatus.COMPLETED)
            job.return_value = status
            made.append(job)
        return made


@dataclass
class RapidunLauncherConf:
    _target_: str = "hydra_plugins.rapidun_plugins.launchers.RapidunLauncher"
    name: str = MISSING


def _offer(name: str) -> None:
    node = RapidunLauncherConf(name=name)
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="rapidun")


for _name in LAUNCHERS:
    # Hydra has one of this name itself
    if _name != "basic":
        _offer(_name)
extensions.subscribe(extensions.Kind.launcher, lambda one: _offer(one.name))
