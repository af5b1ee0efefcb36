"""What SLURM says about jobs, as text, and what it means for us.

Seen on SLURM 22.05 (`scontrol -o show job ID`):

    what happened                      JobState       ExitCode  Reason
    returned                           COMPLETED      0:0       None
    raised an exception                FAILED         1:0       NonZeroExitCode
    SIGKILL of the task                FAILED         137:0     NonZeroExitCode
    over its memory, no cgroups        FAILED         137:0     NonZeroExitCode   log: `exceeded memory limit`
    over its memory, cgroups           OUT_OF_MEMORY  0:125     OutOfMemory       log: `oom-kill`, `oom_kill`
    scancel while running              CANCELLED      0:15      None
    scancel while pending              CANCELLED      0:0       why it was pending
    over its time limit                TIMEOUT        0:15      TimeLimit
    node lost, not requeued            NODE_FAIL      0:0       NodeDown
    requeued                           PENDING        0:0       BeginTime         Restarts=1

An array's tasks that have not started share one line, `ArrayTaskId=4-9%2`; so do those cancelled before they started.
"""

import re
import signal
from typing import NamedTuple

from rapidun.base.text import lines_of
from rapidun.sweep.launcher import JobState, Phase
from rapidun.sweep.launchers.submission import SIGNAL_BASE, TIME_LIMIT_STATUS

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
CAUSES = {
    "TIMEOUT": "time limit",
    "OUT_OF_MEMORY": "out of memory",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "node failure",
    "PREEMPTED": "preempted",
    "DEADLINE": "deadline",
    "REVOKED": "revoked",
}
# Reasons that do not go away by themselves: somebody must do something, so they are shown.
STUCK = {
    "JobHeldUser": "held by the user",
    "JobHeldAdmin": "held by an administrator",
    "DependencyNeverSatisfied": "waits for a job that will never end so",
    "BadConstraints": "no node fits the constraints",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "the nodes it needs are not available",
    "Nodes_required_for_job_are_DOWN": "the nodes it needs are down, drained or reserved",
    "launch_failed_requeued_held": "SLURM could not start it and holds it",
    "JobHoldMaxRequeue": "queued again too often, SLURM holds it",
    "AssocGrpSubmitJobsLimit": "over a limit of the account",
    "QOSMaxWallDurationPerJobLimit": "asks for more time than the QOS allows",
}
MEMORY_SIGNS = ("exceeded memory limit", "oom-kill", "oom_kill", "out-of-memory handler", "Out Of Memory")
# SLURM's own mark for an out-of-memory kill, in the place of a signal
OOM_MARK = 125


class Seen(NamedTuple):
    """One job, or task of an array, as SLURM shows it."""

    state: str
    reason: str
    # exit status and signal of the batch script
    status: int
    signal: int
    # how often it was queued again
    restarts: int


def parse_jobs(text: str) -> dict[str, Seen]:
    """Read `scontrol -o show job`: handle (`123`, `123_4`) -> what is seen; ranges of array tasks are spread out."""
    shared: dict[str, Seen] = {}
    single: dict[str, Seen] = {}
    for line in lines_of(text):
        fields = {key: value for key, value in re.findall(r"(?:^|\s)(\w+)=(\S*)", line)}
        if "JobId" not in fields or "JobState" not in fields:
            continue
        status, _, number = fields.get("ExitCode", "0:0").partition(":")
        seen = Seen(
            state=fields["JobState"].rstrip("+"),
            reason=fields.get("Reason", ""),
            status=int(status),
            signal=int(number or 0),
            restarts=int(fields.get("Restarts", "0")),
        )
        if "ArrayJobId" not in fields:
            single[fields["JobId"]] = seen
            continue
        tasks = expand_tasks(fields.get("ArrayTaskId", ""))
        into = single if len(tasks) == 1 else shared
        into.update({f"{fields['ArrayJobId']}_{task}": seen for task in tasks})
    # a task that has its own line is no longer described by the line of the range
    return shared | single


def parse_sacct(text: str) -> dict[str, Seen]:
    """Read `sacct -nPX -o JobID,State,ExitCode`: for jobs that slurmctld has forgotten."""
    jobs = {}
    for line in lines_of(text):
        handle, state, code = [*line.split("|"), "", ""][:3]
        status, _, number = (code or "0:0").partition(":")
        # `CANCELLED by 1000`
        seen = Seen(state.split(" ")[0].rstrip("+"), "", int(status or 0), int(number or 0), 0)
        base, bracket, tasks = handle.partition("_[")
        names = [f"{base}_{task}" for task in expand_tasks(tasks.rstrip("]"))] if bracket else [handle]
        jobs.update(dict.fromkeys(names, seen))
    return jobs


def expand_tasks(text: str) -> list[int]:
    """`2,4-6%2` -> [2, 4, 5, 6]; `0-8:4` -> [0, 4, 8]."""
    tasks: list[int] = []
    for part in text.split("%")[0].split(","):
        if not part:
            continue
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        tasks += range(int(first), int(last or first) + 1, int(step or 1))
    return tasks


def compress_tasks(tasks: list[int]) -> str:
    """[2, 4, 5, 6] -> `2,4-6`."""
    parts: list[list[int]] = []
    for task in sorted(set(tasks)):
        if parts and task == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], task]
        else:
            parts.append([task])
    return ",".join("-".join(str(end) for end in part) for part in parts)


def interpret(seen: Seen, *, log: str = "") -> JobState:
    """What a job's state means; `log` is the end of what it printed, which alone tells some causes."""
    if seen.state in WAITING:
        # `ReqNodeNotAvail,_UnavailableNodes:node7`
        return JobState(Phase.waiting, STUCK.get(re.split(r"[,(:]", seen.reason)[0], ""))
    if seen.state in RUNNING:
        return JobState(Phase.running)
    if seen.state == "COMPLETED":
        return JobState(Phase.done)
    if seen.state in CAUSES:
        return JobState(Phase.failed, CAUSES[seen.state])
    return JobState(Phase.failed, failure_cause(seen, log=log))


def failure_cause(seen: Seen, *, log: str) -> str:
    """Why a job that SLURM calls FAILED did so."""
    number = seen.signal or (seen.status - SIGNAL_BASE if seen.status > SIGNAL_BASE else 0)
    if number == OOM_MARK:
        return CAUSES["OUT_OF_MEMORY"]
    if number == signal.SIGKILL and any(sign in log for sign in MEMORY_SIGNS):
        return CAUSES["OUT_OF_MEMORY"]
    if seen.status == TIME_LIMIT_STATUS:
        return CAUSES["TIMEOUT"]
    # one process that fails takes the others of its job with it: the first line says which and why
    first = re.search(r"srun: error: \S+: tasks? [\d,-]+: (?:Exited with exit code (\d+))?", log)
    if first and first.group(1) and int(first.group(1)) < SIGNAL_BASE:
        return f"exit status {first.group(1)}"
    if 0 < number < signal.NSIG:
        return f"killed by signal {number}"
    if seen.status:
        return f"exit status {seen.status}"
    return f"SLURM says {seen.state}" + (f" ({seen.reason})" if seen.reason not in ("", "None") else "")
