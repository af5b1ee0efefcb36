"""What runs in a submitted process: one job file, its ranks, and the way back into the queue after a signal.

submitit pickles a callable per job. Ours holds two strings, so that the pickle is a class name and where to look;
everything else stands in the job file and is read when the job starts.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from submitit import JobEnvironment
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.helpers import TorchDistributedEnvironment

from rapidun.base.preemption import Preempted, install

WORKER = "rapidun.sweep.worker:run_job"

# Exit status of a job that used up its time limits, as timeout(1) has it: the launchers read it as the cause.
TIME_LIMIT_STATUS = 124
# Exit status of a process that a signal ended, as a shell reports it: this and the signal's number.
SIGNAL_BASE = 128

# SLURM sends the signal before the time limit up to a minute early, and our clock starts a little after SLURM's.
SIGNAL_SLACK_S = {"slurm": 65.0, "local": 5.0}

# Seconds between the signal and the end of a job; the launchers set it in the job's environment.
SIGNAL_DELAY = "RAPIDUN_SIGNAL_DELAY_S"
# Threads of this process where resources.num_threads is 0; the worker takes them instead of all cores.
NUM_THREADS = "RAPIDUN_NUM_THREADS"


class RunJobFile:
    """A picklable call of the worker with one job file.

    Args:
        file: the job's JSON file.
        target: `module:function` that takes the path of a job file.
    """

    def __init__(self, file: str, target: str = WORKER) -> None:
        self.file = file
        self.target = target

    def __call__(self) -> object:
        """Run the job. A stop that was asked for by USR2 queues the job again; any other stop only ends it."""
        requeue = Requeue.from_submitit()
        export_environment(JobEnvironment())
        work = resolve(self.target)
        # From here on a signal means: save a checkpoint, then raise Preempted. SIGTERM too, which submitit ignores: a
        # cancelled job then leaves a readable state at once instead of being killed half a minute later.
        install((signal.SIGUSR2, signal.SIGTERM))
        try:
            return work(self.file)
        except Preempted as stop:
            print(f"stopped: {stop}", file=sys.stderr, flush=True)
            requeue.leave(terminated="SIGTERM" in stop.reason)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit runs after a requeue: the same job file, whose run folders say where to go on."""
        return DelayedSubmission(RunJobFile(self.file, self.target))


class Requeue(SignalHandler):
    """submitit's way back into the queue, with the time limit told from a preemption by our own clock.

    submitit takes every signal for a time limit when the limit is ten minutes or less.
    """

    @classmethod
    def from_submitit(cls) -> "Requeue":
        """Take over what submitit's own handler knows: it is installed when a job starts."""
        number = JobEnvironment._usr_sig()
        theirs = getattr(signal.getsignal(number), "__self__", None)
        if not isinstance(theirs, SignalHandler):
            raise RuntimeError("this runs only as a submitit job")
        ours = cls(theirs.env, theirs._job_paths, theirs._delayed)
        ours._start_time = theirs._start_time
        return ours

    def has_timed_out(self) -> bool:
        """Whether a signal that comes now announces the time limit."""
        remaining = 60 * self._delayed._timeout_min - (time.time() - self._start_time)
        slack = SIGNAL_SLACK_S.get(self.env.name(), 0.0)
        return near_time_limit(remaining, signal_delay_s=float(os.environ.get(SIGNAL_DELAY, "90")), slack_s=slack)

    def leave(self, *, terminated: bool) -> NoReturn:
        """End this process after a stop: queue the job again, or say that its time limits are used up."""
        if terminated:
            # scancel, or a preemption after which SLURM itself queues the job again
            sys.exit(SIGNAL_BASE + signal.SIGTERM)
        # the job goes on to its end now, whatever else arrives
        signal.signal(JobEnvironment._usr_sig(), signal.SIG_IGN)
        try:
            # ranks other than 0 return from this at once
            self.checkpoint_and_try_requeue(JobEnvironment._usr_sig())
        except UncompletedJobError as error:
            print(f"time limit: {error}", file=sys.stderr, flush=True)
            sys.exit(TIME_LIMIT_STATUS)
        sys.exit(0)


def near_time_limit(remaining_s: float, *, signal_delay_s: float, slack_s: float) -> bool:
    """Whether a job with so many seconds left has been signalled because of its time limit."""
    return remaining_s <= signal_delay_s + slack_s


def resolve(target: str) -> Callable[[str], object]:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    found: Callable[[str], object] = getattr(importlib.import_module(module), name)
    return found


def export_environment(job: JobEnvironment) -> None:
    """Set what the worker and torch.distributed look for: ranks, threads, and this process's GPUs."""
    if job.num_tasks > 1:
        # SLURM has given each task its own devices already: a device number made from the rank would be wrong
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            # a compute node's own name is not always one that it can look up
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        if job.name() == "local":
            devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
            own = share(devices, parts=job.num_tasks, index=job.local_rank)
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    if NUM_THREADS not in os.environ and (cpus := os.environ.get("SLURM_CPUS_ON_NODE", "")).isdecimal():
        per_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
        tasks_here = max(1, job.num_tasks // job.num_nodes)
        os.environ[NUM_THREADS] = per_task if per_task.isdecimal() else str(max(1, int(cpus) // tasks_here))


def share(devices: list[str], *, parts: int, index: int) -> list[str]:
    """The devices of one of several processes: consecutive, as many for each."""
    each = len(devices) // parts
    return devices[index * each : (index + 1) * each]
