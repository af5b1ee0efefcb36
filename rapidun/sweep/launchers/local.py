"""Jobs as processes on this machine, some at a time, through submitit; they live on when the submitting process dies.

Files of a job in `jobs/local/`, all named after its handle `<job id>.<number of the attempt>`:

    .queued.json      submitted; without `.start.json` it waits in the launcher that took it
    .start.json       pid and start time of its controller (a later process with the same pid has another start time),
                      and the GPUs that it uses
    .end.json         exit codes of its processes, written by the controller
    .cancelled        somebody cancelled it
    _0_log.out        what it printed
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

from rapidun.base.files import read_json, write_json
from rapidun.base.machine import available_cores, visible_gpus
from rapidun.config.sweep import ResourcesConfig
from rapidun.sweep.launcher import CANCEL_WAIT_S, Job, JobState, Launcher, LauncherContext, Phase
from rapidun.sweep.launchers import controller
from rapidun.sweep.launchers.submission import (
    NUM_THREADS,
    SIGNAL_BASE,
    SIGNAL_DELAY,
    TIME_LIMIT_STATUS,
    WORKER,
    RunJobFile,
)

# Jobs at once where neither sweep.max_parallel nor resources.num_threads says how many: each holds a model in memory.
MOST_BY_DEFAULT = 4
# what submitit replaces in paths, in those of a user's folders too
SUBMITIT_TAGS = ("%j", "%t", "%A", "%a")

# Controllers started here: their ends must be collected, or they stay as zombies.
CHILDREN: list["subprocess.Popen[bytes]"] = []


class LocalLauncher(Launcher):
    """Launcher for this machine. `submit` takes every job at once and starts what fits; `states` starts the next ones.

    So somebody must call `states` for the queue to move, and jobs that have not started when that process ends are
    gone; those that have started go on.
    Jobs at once: sweep.max_parallel, else cores // (num_threads x num_processes), else up to four. A job whose
    num_threads is 0 gets its part of the cores as RAPIDUN_NUM_THREADS and OMP_NUM_THREADS. A job sees the GPUs that it
    asked for and no others: none for num_gpus=0.
    """

    outlives_driver = True

    def __init__(self, context: LauncherContext, *, target: str = WORKER) -> None:
        self.context = context
        self.target = target
        self.folder = context.sweep_dir.absolute() / "jobs" / "local"
        self.cores = available_cores()
        self.devices = visible_gpus()
        # handle -> job, in order of submission
        self.queue: dict[str, Job] = {}
        # handles of jobs that may still be running, and the GPUs that they use
        self.running: dict[str, list[str]] = {}

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """What this machine does not have, and a folder that submitit would read as another one."""
        faults = []
        if tags := [tag for tag in SUBMITIT_TAGS if tag in str(self.folder)]:
            faults.append(
                f"sweep.name: need a sweep's folder without {', '.join(tags)}, for which submitit puts a job's number, "
                f"got {self.folder}. Pass another sweep.name=..., or start the sweep in another folder"
            )
        for job in jobs:
            gpus = job.resources.num_processes * job.resources.num_gpus
            if gpus > len(self.devices):
                faults.append(
                    f"resources.num_gpus: this machine shows {len(self.devices)} GPUs, got "
                    f"num_processes={job.resources.num_processes} x num_gpus={job.resources.num_gpus}. "
                    "Lower one of them, or pass resources=cpu"
                )
        return list(dict.fromkeys(faults))

    def submit(self, jobs: Sequence[Job], *, handles: Mapping[str, str], **steps: Any) -> dict[str, str]:
        """Queue jobs, whose needs must have ended, and start those that fit."""
        taken = {}
        for job in jobs:
            handle = self.new_handle(job)
            self.queue[handle] = job
            taken[job.id] = handle
        self.start_next()
        return taken

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        """The state of each job; starts jobs that wait when others have ended."""
        self.start_next()
        return {job: self.state(handle) for job, handle in handles.items()}

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Take waiting jobs out of the queue; SIGTERM to running ones, SIGKILL to what remains a second later."""
        controllers = {}
        for handle in handles.values():
            if self.state(handle).phase not in (Phase.waiting, Phase.running):
                continue
            (self.folder / f"{handle}.cancelled").touch()
            if self.queue.pop(handle, None) is None and (pid := self.controller_pid(handle)):
                controllers[handle] = pid
        for pid in controllers.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self.wait_for_end(controllers, seconds=CANCEL_WAIT_S)
        for pid in controllers.values():
            # the controller leads the group of all processes of its job
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.wait_for_end(controllers, seconds=CANCEL_WAIT_S / 2)

    def wait_for_end(self, handles: Iterable[str], *, seconds: float) -> None:
        """Wait until the controllers of these jobs have ended, or so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(self.controller_pid(handle) for handle in handles):
            time.sleep(0.02)

    def log(self, handle: str) -> Path | None:
        """What the job's first process printed."""
        path = self.folder / f"{handle}_0_log.out"
        return path if path.exists() else None

    def unnoted_handles(self, ids: Sequence[str], *, drop_broken: bool) -> dict[str, str]:
        """Each handle has files, which say what runs; what had not started ended with the process that queued it."""
        found = {}
        for id in ids:
            for file in self.folder.glob(f"{id}.*.start.json"):
                handle = file.name.removesuffix(".start.json")
                if self.state(handle).phase is Phase.running:
                    found[id] = handle
        return found

    # One job

    def new_handle(self, job: Job) -> str:
        """A handle that no attempt before has used, also none of another process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            handle = f"{job.id}.{number}"
            try:
                with (self.folder / f"{handle}.queued.json").open("x", encoding="utf-8") as file:
                    file.write("{}\n")
                return handle
            except FileExistsError:
                number += 1

    def state(self, handle: str) -> JobState:
        if handle in self.queue:
            return JobState(Phase.waiting)
        alive = self.controller_pid(handle) is not None
        # in this order: a controller writes the record just before it ends
        end = controller.end_file(self.folder, handle)
        cancelled = (self.folder / f"{handle}.cancelled").exists()
        if end.exists():
            return interpret(read_json(end), cancelled=cancelled)
        if alive:
            return JobState(Phase.running)
        if cancelled:
            return JobState(Phase.failed, "cancelled")
        if (self.folder / f"{handle}.start.json").exists():
            return JobState(Phase.failed, "killed with the process that watched it")
        return JobState(Phase.gone, "never started: the process that would have started it has ended")

    def controller_pid(self, handle: str) -> int | None:
        """The process that watches a job, if it is still that one and still alive."""
        path = self.folder / f"{handle}.start.json"
        if not path.exists():
            return None
        record = read_json(path)
        return record["pid"] if started_at(record["pid"]) == record["started"] else None

    # The queue

    def start_next(self) -> None:
        CHILDREN[:] = [child for child in CHILDREN if child.poll() is None]
        for handle in list(self.running):
            if self.state(handle).phase is not Phase.running:
                del self.running[handle]
        for handle, job in list(self.queue.items()):
            devices = self.free_devices(job.resources)
            if len(self.running) >= self.most_at_once(job.resources) or devices is None:
                # in order: a small job does not overtake one that waits for two GPUs
                return
            del self.queue[handle]
            self.start(handle, job, devices)
            self.running[handle] = devices

    def most_at_once(self, resources: ResourcesConfig) -> int:
        """How many jobs like this one run at the same time."""
        if self.context.max_parallel:
            return self.context.max_parallel
        if resources.num_threads:
            return max(1, self.cores // (resources.num_threads * resources.num_processes))
        return max(1, min(MOST_BY_DEFAULT, self.cores // resources.num_processes))

    def free_devices(self, resources: ResourcesConfig) -> list[str] | None:
        """GPUs for a job; None if too few are free now."""
        needed = resources.num_processes * resources.num_gpus
        used = {device for devices in self.running.values() for device in devices}
        free = [device for device in self.devices if device not in used]
        return free[:needed] if len(free) >= needed else None

    def start(self, handle: str, job: Job, devices: list[str]) -> None:
        resources = job.resources
        share = max(1, self.cores // (self.most_at_once(resources) * resources.num_processes))
        threads = str(resources.num_threads or share)
        executor = Executor(self.folder, handle=handle, devices=devices, max_num_timeout=resources.max_timeouts)
        executor.environment = {
            NUM_THREADS: threads,
            "OMP_NUM_THREADS": threads,
            SIGNAL_DELAY: str(self.context.cluster.signal_delay_s),
        }
        executor.update_parameters(
            timeout_min=resources.timeout_min,
            signal_delay_s=self.context.cluster.signal_delay_s,
            tasks_per_node=resources.num_processes,
            stderr_to_stdout=True,
        )
        executor.submit(RunJobFile(str(job.file.absolute()), self.target))


class Executor(LocalExecutor):
    """submitit's executor for one job, with our controller in the place of its own."""

    def __init__(self, folder: Path, *, handle: str, devices: Sequence[str], max_num_timeout: int) -> None:
        super().__init__(folder, max_num_timeout=max_num_timeout)
        self.handle = handle
        self.devices = list(devices)
        self.environment: dict[str, str] = {}

    def _submit_command(self, command: str) -> LocalJob[Any]:
        tasks = self.parameters["tasks_per_node"]
        variables = {
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(int(60 * self.parameters["timeout_min"])),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
            "CUDA_VISIBLE_DEVICES": ",".join(self.devices),
        }
        process = controller.start(self.folder, self.handle, variables | self.environment)
        CHILDREN.append(process)
        record = {"pid": process.pid, "started": started_at(process.pid), "devices": self.devices}
        write_json(self.folder / f"{self.handle}.start.json", record)
        return LocalJob(folder=self.folder, job_id=self.handle, tasks=list(range(tasks)))


def interpret(end: Mapping[str, Any], *, cancelled: bool) -> JobState:
    """What a controller's record means."""
    codes = end["exit_codes"]
    if all(code == 0 for code in codes):
        return JobState(Phase.done)
    if cancelled:
        return JobState(Phase.failed, "cancelled")
    if end["out_of_time"] or TIME_LIMIT_STATUS in codes:
        return JobState(Phase.failed, "time limit")
    # the first that failed by itself; the controller stopped those without a code because of it
    code = next(code for code in codes if code not in (0, None))
    number = -code if code < 0 else code - SIGNAL_BASE
    killed = 0 < number < signal.NSIG
    return JobState(Phase.failed, f"killed by signal {number}" if killed else f"exit status {code}")


def started_at(pid: int) -> str | None:
    """When a process started, as the system has it; None if it has ended (also if nobody has collected it yet)."""
    if sys.platform == "linux":
        try:
            # the name before the last bracket may hold spaces
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()
