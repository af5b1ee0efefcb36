"""Jobs in a pool of processes on this machine (joblib's loky): cores and GPUs are shared out, models stay in memory.

A worker that is killed takes the pool down, and with it the jobs that ran beside it; those go on in a new pool.
"""

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rapidun.base.machine import available_cores, visible_gpus
from rapidun.sweep.launcher import CANCEL_WAIT_S, POOL_DIED, Job, JobState, Launcher, LauncherContext, Phase
from rapidun.sweep.worker import run_job

# how soon a worker notices that the process which launched the sweep is gone
PARENT_SECONDS = 1.0


class ParallelLauncher(Launcher):
    """At most sweep.max_parallel workers (else one for each `num_threads` cores, or each GPU that a job needs)."""

    shares_process = True

    def __init__(self, context: LauncherContext) -> None:
        self.context = context
        self._pool: Any = None
        self._futures: dict[str, Future[None]] = {}
        self._files: dict[str, Path] = {}

    def check(self, jobs: Sequence[Job]) -> list[str]:
        faults = []
        gpus = len(visible_gpus())
        for job in jobs:
            if job.resources.num_processes > 1:
                faults.append(
                    f"resources.num_processes: need 1 with hydra/launcher=joblib, got {job.resources.num_processes}. "
                    "Pass hydra/launcher=rapidun_local or rapidun_slurm"
                )
            if job.resources.num_gpus > gpus:
                faults.append(
                    f"resources.num_gpus: this machine shows {gpus} GPUs, got {job.resources.num_gpus}. "
                    "Lower it, or pass resources=cpu"
                )
        return list(dict.fromkeys(faults))

    def submit(self, jobs: Sequence[Job], *, handles: Mapping[str, str], **steps: Any) -> dict[str, str]:
        for job in jobs:
            log = job.file.with_suffix(".log")
            self._files[job.id] = log
            self._futures[job.id] = self._workers(job).submit(_work, str(job.file), str(log))
        return {job.id: str(self._files[job.id]) for job in jobs}

    def _workers(self, job: Job) -> Any:
        """The pool; a new one where the old one broke."""
        from joblib.externals.loky import get_reusable_executor

        if self._pool is None or self._pool._flags.broken is not None:
            cores, gpus = available_cores(), visible_gpus()
            threads = job.resources.num_threads
            number = self.context.max_parallel or (cores // threads if threads else cores)
            if job.resources.num_gpus:
                number = min(number, len(gpus) // job.resources.num_gpus)
            number = max(1, number)
            # a folder for each pool: every worker of the one before may be dead
            slots = Path(tempfile.mkdtemp(prefix="slots-", dir=self.context.sweep_dir / "jobs"))
            each = job.resources.num_gpus
            shares = [",".join(gpus[slot * each : (slot + 1) * each]) for slot in range(number)]
            self._pool = get_reusable_executor(
                max_workers=number,
                # workers stay for the whole sweep: one that was started again would find its slot taken
                timeout=None,
                initializer=_start_worker,
                initargs=(str(slots), shares, threads or max(1, cores // number)),
                reuse=False,
            )
        return self._pool

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        return {id: self._state(id) for id in handles}

    def _state(self, id: str) -> JobState:
        future = self._futures.get(id)
        if future is None:
            return JobState(Phase.gone)
        if not future.done():
            return JobState(Phase.running if future.running() else Phase.waiting)
        if future.cancelled():
            return JobState(Phase.failed, "cancelled")
        error = future.exception()
        if error is None:
            return JobState(Phase.done)
        if isinstance(error, BrokenProcessPool):
            return JobState(Phase.failed, POOL_DIED)
        return JobState(Phase.failed, (str(error) or type(error).__name__).split("\n")[0])

    def cancel(self, handles: Mapping[str, str]) -> None:
        for id in handles:
            if id in self._futures:
                self._futures[id].cancel()
        if self._pool is None:
            return
        workers = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, kill_workers=True)
        self._pool = None
        # a thread of the pool kills them, sooner or later; none may start another cell meanwhile
        deadline = time.monotonic() + CANCEL_WAIT_S
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                worker.kill()

    def log(self, handle: str) -> Path | None:
        return Path(handle)


def _start_worker(slots: str, shares: list[str], num_threads: int) -> None:
    """Take a free slot, and with it the slot's GPUs, before anything imports torch."""
    # a terminal's Ctrl-C reaches the launching process, which ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="parent").start()
    for number, devices in enumerate(shares):
        marker = Path(slots) / str(number)
        try:
            with marker.open("x", encoding="utf-8") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
        break
    os.environ["RAPIDUN_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(num_threads)


def _end_with(parent: int) -> None:
    """End this worker when the process that launched the sweep is gone: the next launch starts the cells anew."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def _work(file: str, log: str) -> None:
    """One job in a worker of the pool; what it prints goes to its log."""
    with (
        open(log, "a", encoding="utf-8", buffering=1) as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        run_job(file)
