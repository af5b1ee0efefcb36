"""The process that watches one local job: starts it, signals it before its time limit, notes how it ended.

It lives in a session of its own, so that neither Ctrl-C nor the end of the submitting process reaches it. submitit's
controller does the rest; it keeps no record of how a job ended, which is what any later process must find.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller

from rapidun.base.files import write_json

HANDLE = "RAPIDUN_LOCAL_HANDLE"
# How often the job has been started again, as SLURM_RESTART_COUNT
RESTARTS = "RAPIDUN_RESTARTS"
POLL_S = 0.05
# Seconds that the other processes of a job have to end when one has failed.
GRACE_S = 5.0


def end_file(folder: Path, handle: str) -> Path:
    """Where a controller writes how its job ended."""
    return folder / f"{handle}.end.json"


class JobController(Controller):
    """submitit's controller with the handle as job id, a record of the end, and no process left behind by a failure."""

    def __init__(self, folder: Path, handle: str) -> None:
        super().__init__(folder)
        # names the job's files
        self.pid = handle
        self.out_of_time = False
        forward: Any = self._forward_signal
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, forward)

    def wait(self, freq: int = 24) -> Sequence[int | None]:
        """Wait until all processes have ended; one that fails takes the others with it, and so does the time limit."""
        start = time.monotonic()
        warned = False
        failed_at: float | None = None
        while True:
            codes = [task.poll() for task in self.tasks]
            if None not in codes:
                return codes
            now = time.monotonic()
            if failed_at is None and any(code not in (None, 0, LOCAL_REQUEUE_RETURN_CODE) for code in codes):
                failed_at = now
            if failed_at is not None and now - failed_at > GRACE_S:
                return codes
            if not warned and now - start >= self.timeout_s - self.signal_delay_s:
                warned = True
                self._forward_signal(signal.SIGUSR2)
            if now - start >= self.timeout_s:
                self.out_of_time = True
                return codes
            time.sleep(POLL_S)

    def run(self, max_retry: int = 0) -> None:
        """Run the job, again as often as it asks to be queued again, then write how it ended."""
        restarts = 0
        codes: Sequence[int | None] = []
        while True:
            os.environ[RESTARTS] = str(restarts)
            try:
                self.start_tasks()
                codes = self.wait()
            finally:
                self.kill_tasks()
            if LOCAL_REQUEUE_RETURN_CODE not in codes:
                break
            restarts += 1
        record = {"exit_codes": list(codes), "out_of_time": self.out_of_time, "restarts": restarts}
        write_json(end_file(self.folder, self.pid), record)


def start(folder: Path, handle: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a controller in a session of its own; what it says itself goes to the job's log."""
    with (folder / f"{handle}_0_log.out").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)],
            env=os.environ | environment | {HANDLE: handle},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


if __name__ == "__main__":
    # started amid a submission, which holds Ctrl-C back; this process has a session of its own
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    JobController(Path(sys.argv[1]), os.environ[HANDLE]).run()
