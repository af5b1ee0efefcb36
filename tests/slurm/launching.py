"""A SLURM launcher and jobs of a few lines for it (tests/sweep/launcher_target.py), without a sweep around them."""

import json
from pathlib import Path

from sweeps import PATIENCE_S, wait_until

from rapidun.config.sweep import ClusterConfig, ResourcesConfig
from rapidun.sweep.launcher import Job, JobState, LauncherContext, Phase
from rapidun.sweep.launchers.slurm.launcher import SlurmLauncher

FINAL = (Phase.done, Phase.failed, Phase.gone)
DONE = JobState(Phase.done)


class Sweep:
    """A launcher and the jobs that a test makes for it; nothing of it runs on after the test."""

    def __init__(self, folder: Path, *, max_parallel: int = 0, **settings: object) -> None:
        self.folder = folder
        context = LauncherContext(
            sweep_dir=folder / "grid", cluster=ClusterConfig(**settings), max_parallel=max_parallel
        )
        self.launcher = SlurmLauncher(context, target="launcher_target:run")
        self.handles: dict[str, str] = {}

    def job(
        self, name: str, do: str, *, needs: tuple[str, ...] = (), resources: dict | None = None, **more: object
    ) -> Job:
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps({"do": do, "out": str(self.folder / f"{name}.out"), **more}))
        # with the test cluster's accounting of memory a job may use what it asked for, and no more
        asked = ResourcesConfig(**({"num_threads": 1, "mem_gb": 0.4, "timeout_min": 30} | (resources or {})))
        return Job(id=name, file=file, needs=needs, resources=asked)

    def submit(self, *jobs: Job) -> dict[str, str]:
        new = self.launcher.submit(jobs, handles=self.handles)
        self.handles |= new
        return new

    def states(self) -> dict[str, JobState]:
        return self.launcher.states(self.handles)

    def wait(self, *names: str, timeout_s: float = PATIENCE_S) -> dict[str, JobState]:
        wanted = names or tuple(self.handles)
        wait_until(
            lambda: all(self.states()[name].phase in FINAL for name in wanted), timeout_s=timeout_s, tell=self.tell
        )
        return {name: self.states()[name] for name in wanted}

    def tell(self) -> str:
        logs = [f"{name}: {self.log(name)[-600:]}" for name in self.handles]
        return "\n".join([str(self.states()), *logs])

    def log(self, name: str) -> str:
        path = self.launcher.log(self.handles[name])
        return path.read_text() if path else "no log"

    def seen(self, name: str) -> list[dict]:
        path = self.folder / f"{name}.out"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
