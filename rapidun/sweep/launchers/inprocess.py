"""Jobs one after the other in this process: nothing to start, model and pack stay in memory between cells."""

import contextlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.machine import visible_gpus
from rapidun.base.redact import hide
from rapidun.base.text import first_line
from rapidun.sweep.launcher import Job, JobState, Launcher, LauncherContext, Phase
from rapidun.sweep.worker import JobFailed, forget_inputs, run_job


class InProcessLauncher(Launcher):
    """`submit` returns when its jobs have ended. What they print goes to jobs/<id>.log."""

    one_at_a_time = True
    shares_process = True

    def __init__(self, context: LauncherContext) -> None:
        self.context = context
        self._states: dict[str, JobState] = {}
        forget_inputs()

    def check(self, jobs: Sequence[Job]) -> list[str]:
        gpus = max((job.resources.num_gpus for job in jobs), default=0)
        missing = gpus > len(visible_gpus())
        faults = [
            f"resources.num_gpus: need a machine with {gpus} GPUs, got none or fewer. Pass resources=cpu"
        ] * missing
        return faults + [
            f"resources.num_processes: need 1 in the launching process, got {job.resources.num_processes}. Pass "
            "hydra/launcher=rapidun_local or rapidun_slurm"
            for job in jobs[:1]
            if job.resources.num_processes > 1
        ]

    def submit(self, jobs: Sequence[Job], *, handles: Mapping[str, str], **steps: Any) -> dict[str, str]:
        for job in jobs:
            log = job.file.with_suffix(".log")
            with (
                log.open("a", encoding="utf-8", buffering=1) as stream,
                contextlib.redirect_stdout(stream),
                contextlib.redirect_stderr(stream),
            ):
                try:
                    run_job(str(job.file))
                    self._states[job.id] = JobState(Phase.done)
                except JobFailed as error:
                    self._states[job.id] = JobState(Phase.failed, str(error))
                except Exception as error:
                    # a job file that cannot be read, a full disk: the next job may fare better
                    print(hide(traceback.format_exc()), file=sys.stderr)
                    self._states[job.id] = JobState(Phase.failed, hide(first_line(error)))
        return {job.id: str(job.file.with_suffix(".log")) for job in jobs}

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        # jobs of an earlier process ended with it
        return {id: self._states.get(id, JobState(Phase.gone)) for id in handles}

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Nothing: a job ends with the interrupt that reaches this process."""

    def log(self, handle: str) -> Path | None:
        return Path(handle)
