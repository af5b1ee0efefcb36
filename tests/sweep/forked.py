"""`python forked.py FOLDER OVERRIDE...`: a sweep with one cell a job and one with eight, each job a forked process.

A job sees what a fresh process would, modules imported and nothing else done, without the seconds of its start. The
sweeps are FOLDER/1 and FOLDER/8, with a store of their own.
"""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.cli.main import main
from rapidun.config.sweep import LAUNCHERS
from rapidun.sweep.launcher import Job, JobState, Launcher, LauncherContext, Phase
from rapidun.sweep.worker import HEAVY_MODULES, run_job


class ForkLauncher(Launcher):
    one_at_a_time = True

    def __init__(self, context: LauncherContext) -> None:
        self.ended: dict[str, JobState] = {}

    def check(self, jobs: Sequence[Job]) -> list[str]:
        return []

    def submit(self, jobs: Sequence[Job], *, handles: Mapping[str, str], **steps: Any) -> dict[str, str]:
        for job in jobs:
            log = job.file.with_suffix(".log")
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    with log.open("a", encoding="utf-8", buffering=1) as stream:
                        os.dup2(stream.fileno(), 1)
                        os.dup2(stream.fileno(), 2)
                        run_job(str(job.file))
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    # nothing of the parent's, which goes on behind this
                    os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self.ended[job.id] = JobState(Phase.done if status == 0 else Phase.failed)
        return {job.id: str(job.file.with_suffix(".log")) for job in jobs}

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        return {id: self.ended.get(id, JobState(Phase.gone)) for id in handles}

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Nothing: a job has ended when `submit` returns."""

    def log(self, handle: str) -> Path | None:
        return Path(handle)


if __name__ == "__main__":
    sys.modules["forked"] = sys.modules["__main__"]
    LAUNCHERS["rapidun_local"] = "forked.ForkLauncher"
    for name in HEAVY_MODULES:
        __import__(name)
    for count in (1, 8):
        folder = Path(sys.argv[1], str(count))
        folder.mkdir()
        os.chdir(folder)
        options = ["sweep.name=grid", "hydra/launcher=rapidun_local", f"resources.cells_per_job={count}"]
        if main(["-m", *sys.argv[2:], *options]):
            sys.exit(1)
