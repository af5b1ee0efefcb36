"""Running sbatch so that neither a full queue nor a controller that is away holds us up, and no submission is lost.

Where SLURM's queue is full, sbatch sleeps for 1, 2, ... 15 seconds between its tries, two minutes in all. Here it is
ended at the first sign of that; whoever submits tries again later.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmExecutor

from rapidun.base.errors import RapidunError
from rapidun.base.files import write_text
from rapidun.sweep.launcher import NotNow
from rapidun.sweep.launchers.slurm.commands import (
    TIMEOUT_S,
    SlurmRefused,
    SlurmUnreachable,
    is_away,
    submission_environment,
)
from rapidun.sweep.launchers.slurm.tokens import base_of

# A controller under load takes seconds; one that is away is tried for less than this by sbatch itself.
PATIENCE_S = 60.0
# After Ctrl-C: so long sbatch may still end by itself.
INTERRUPTED_S = 1.5
POLL_S = 0.05
# Until submitit takes USR2 over, seconds into a busy node's start, it would end the process: a job that is preempted or
# near its limit would fail instead of being queued again. SLURM gives its tasks the default, whatever the script says.
DEAF_START = """/bin/sh -c 'trap "" USR2; exec "$0" "$@"' """
MOST_BYTES = 65536
# what sbatch says before it sleeps
SLEEPS = re.compile(r"retrying", re.IGNORECASE)
# the queue, a user, an account or a QOS has as many jobs as it may
FULL = re.compile(r"queue full|MaxSubmit|GrpSubmit|MaxJobsPer|MaxJobCount", re.IGNORECASE)
# a limit that is not named: of the number of jobs, or of what one job may ask for
LIMIT = re.compile(r"violates accounting/QOS policy", re.IGNORECASE)


class QueueFull(NotNow):
    """SLURM holds as many jobs as it may: fewer may still fit."""


class InDoubt(NotNow):
    """SLURM may have taken the jobs, or take them later: they are to be looked for by their comment."""


class OverALimit(QueueFull):
    """SLURM does not say over which limit: of the number of jobs, or of what one of them asks for."""


class Executor(SlurmExecutor):
    """submitit's executor with our sbatch; also where there is no srun, for showing scripts."""

    def __init__(self, folder: Path, *, interrupted: Callable[[], bool] = lambda: False) -> None:
        super().__init__(folder, python=DEAF_START + shlex.quote(sys.executable))
        self.interrupted = interrupted

    @classmethod
    def affinity(cls) -> int:
        return 2

    def submit_calls(self, calls: Sequence[Callable[[], object]], *, comment: str) -> list[str]:
        """Submit one array (one call: a job alone) with this comment; returns the handle of each call.

        Raises: NotNow where SLURM takes no jobs now; RapidunError where it refuses these.
        """
        self.update_parameters(comment=comment)
        if len(calls) > 1:
            self.parameters["map_count"] = len(calls)
        token = comment.rpartition(":")[2]
        script = self.folder / f"{token}.sh"
        pickles = [self.folder / f"{token}_{number}.pkl" for number in range(len(calls))]
        try:
            for call, path in zip(calls, pickles, strict=True):
                delayed = DelayedSubmission(call)
                delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
                delayed.dump(path)
            # it holds what cluster.environment says
            write_text(script, self._make_submission_file_text(self._submitit_command_str, token), private=True)
            base = run_sbatch(script, comment=comment, interrupted=self.interrupted)
        except BaseException:
            for path in (script, *pickles):
                path.unlink(missing_ok=True)
            raise
        handles = [base] if len(calls) == 1 else [f"{base}_{task}" for task in range(len(calls))]
        for handle, path in zip(handles, pickles, strict=True):
            path.rename(JobPaths(self.folder, handle).submitted_pickle)
        script.rename(JobPaths(self.folder, handles[0]).submission_file)
        return handles


def run_sbatch(script: Path, *, comment: str, interrupted: Callable[[], bool]) -> str:
    """Submit a script; returns SLURM's number for it.

    Args: comment: of the job, by which it is found again. interrupted: whether the user wants to go.
    Raises: NotNow where SLURM takes no jobs now; RapidunError where it refuses this one.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with submission_environment():
            process = subprocess.Popen(["sbatch", str(script)], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            why = _wait(process, err, interrupted=interrupted)
        finally:
            # a kill amid a try may come after SLURM has taken the job: hence the look below
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        printed, said = _read(out), _read(err)
    if found := re.search(r"Submitted batch job (\d+)", printed):
        return found[1]
    if why is not None:
        try:
            base = base_of(comment, timeout_s=INTERRUPTED_S if interrupted() else TIMEOUT_S)
        except (SlurmUnreachable, SlurmRefused):
            raise InDoubt(str(why)) from None
        if base is None:
            raise why
        return base
    line = _last_line(said)
    if full := [line for line in said.split("\n") if FULL.search(line)]:
        raise QueueFull(_last_line(full[0]))
    if LIMIT.search(line):
        raise OverALimit(line)
    if is_away(line):
        raise NotNow(f"SLURM does not answer ({line})")
    raise RapidunError(f"SLURM took no jobs: {line}. Check cluster.* and resources.*")


def _wait(process: "subprocess.Popen[bytes]", err: IO[bytes], *, interrupted: Callable[[], bool]) -> NotNow | None:
    """Until sbatch has ended (None), or why not to wait longer."""
    began = time.monotonic()
    deadline = began + PATIENCE_S
    while process.poll() is None:
        said = _read(err)
        if SLEEPS.search(said):
            return QueueFull(_last_line(said).partition(", sleeping")[0])
        if interrupted():
            deadline = min(deadline, time.monotonic() + INTERRUPTED_S)
        if time.monotonic() > deadline:
            return NotNow(f"sbatch did not end within {time.monotonic() - began:.0f} s")
        time.sleep(POLL_S)
    return None


def _read(file: IO[bytes]) -> str:
    """What a file holds so far, which its writer appends to; the writer's place in it stays."""
    return os.pread(file.fileno(), MOST_BYTES, 0).decode("utf-8", errors="replace")


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    return lines[-1].removeprefix("sbatch: ").removeprefix("error: ") if lines else "no reason given"
