"""Jobs as SLURM arrays, through submitit. SLURM holds jobs back until those that they need have ended."""

import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from submitit.slurm.slurm import _make_sbatch_string

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.redact import HIDDEN
from rapidun.base.text import lines_of
from rapidun.sweep.launcher import Job, JobState, Launcher, LauncherContext, NotNow, Phase
from rapidun.sweep.launchers.slurm.batch import (
    cluster_faults,
    dependency_text,
    folder_faults,
    sbatch_parameters,
    setup_lines,
    task_number,
)
from rapidun.sweep.launchers.slurm.commands import (
    SlurmRefused,
    SlurmUnreachable,
    missing_commands,
    site_settings,
    slurm,
)
from rapidun.sweep.launchers.slurm.partition import SINFO_FORMAT, parse_sinfo, partition_faults
from rapidun.sweep.launchers.slurm.sbatch import Executor, InDoubt, OverALimit, QueueFull
from rapidun.sweep.launchers.slurm.states import Seen, compress_tasks, interpret, parse_jobs, parse_sacct
from rapidun.sweep.launchers.slurm.tokens import base_of, forget, new_comment, unnoted_handles, without_call
from rapidun.sweep.launchers.submission import WORKER, RunJobFile

# SLURM's own default, for scripts shown where there is no SLURM.
USUAL_MAX_ARRAY_SIZE = 1001
# How much of the end of a log can tell why a job was killed.
LOG_TAIL_BYTES = 65536
CANCEL_WAIT_S = 1.5
FORGOTTEN = "SLURM has forgotten this job"
CHECK = ". Check cluster.* and resources.*"
QUEUED_AGAIN = ("node failure", "preempted")


class Array(NamedTuple):
    """Jobs that go into one submission: the same needs, the same resources."""

    jobs: list[Job]
    # how many of its tasks run at once
    parallel: int
    # the array of this call after which it starts, so that arrays side by side keep to max_parallel; None = at once
    after: int | None


class SlurmLauncher(Launcher):
    """Launcher for a SLURM cluster. Handles are SLURM's own ids: `123_4` for a task of an array, `123` for a job alone.

    `sweep.max_parallel` holds for the jobs of one wave: arrays side by side share it out. A state once final is not
    asked for again. Where SLURM does not answer, `states` says so in the cause and keeps the last phase known.
    """

    submits_ahead = True
    detachable = True
    outlives_driver = True
    runs_elsewhere = True

    def __init__(self, context: LauncherContext, *, target: str = WORKER) -> None:
        self.context = context
        self.target = target
        self.folder = context.sweep_dir.absolute() / "jobs" / "slurm"
        self.name = f"rapidun-{context.sweep_dir.name}"
        self.last: dict[str, JobState] = {}
        self.settings: dict[str, str] | None = None
        # a submission found no room for all of its jobs
        self.cut_short = False
        # comments of submissions of which nobody knows whether SLURM took them
        self.doubtful: list[str] = []

    # Before submission

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """What the cluster would refuse or leave pending for ever."""
        faults = cluster_faults(self.context.cluster) + folder_faults(self.folder)
        if missing := missing_commands():
            here = f"hydra/launcher=rapidun_slurm: need SLURM's commands in PATH, missing: {', '.join(missing)}. "
            return [*faults, here + "Run this on a login node of the cluster, or take hydra/launcher=rapidun_local"]
        try:
            kinds = parse_sinfo(slurm("sinfo", "-h", "-e", "-o", SINFO_FORMAT))
        except (SlurmUnreachable, SlurmRefused) as error:
            return [*faults, f"hydra/launcher=rapidun_slurm: {error}. Try `sinfo`"]
        wanted = [job.resources for job in jobs]
        return faults + partition_faults(kinds, partition=self.context.cluster.partition, wanted=wanted)

    def script(self, jobs: Sequence[Job]) -> str:
        """The sbatch scripts that would be submitted, each once; a head lists the arrays that it stands for.

        Raises: ConfigError for a folder that SLURM would read as another one.
        """
        self.refuse_folder()
        scripts: dict[str, list[str]] = {}
        for array in self.arrays(jobs):
            needs = array.jobs[0].needs
            parameters = self.parameters(array, dependency="")
            # a dry run's screen is no place for its values
            shown = replace(self.context.cluster, environment=dict.fromkeys(self.context.cluster.environment, HIDDEN))
            parameters["setup"] = setup_lines(shown, array.jobs[0].resources)
            if len(array.jobs) > 1:
                parameters["map_count"] = len(array.jobs)
            text = _make_sbatch_string(
                command=Executor(self.folder)._submitit_command_str, folder=self.folder, **parameters
            )
            lines = lines_of(text)
            ranges = [line for line in lines if line.startswith("#SBATCH --array=")]
            head = f"# {len(array.jobs)} jobs{' as ' + ranges[0].removeprefix('#SBATCH ') if ranges else ''}: "
            head += f"{array.jobs[0].id}{' ... ' + array.jobs[-1].id if len(array.jobs) > 1 else ''}"
            if needs:
                head += f"; after {', '.join(needs[:3])}{f' and {len(needs) - 3} more' if len(needs) > 3 else ''}"
            body = "\n".join(line for line in lines if line not in ranges)
            scripts.setdefault(body, []).append(head)
        return "\n".join("\n".join(heads) + "\n" + body + "\n" for body, heads in scripts.items())

    # Submission

    def submit(
        self,
        jobs: Sequence[Job],
        *,
        handles: Mapping[str, str],
        on_taken: Callable[[Mapping[str, str]], object] = lambda handles: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> dict[str, str]:
        """Submit jobs, those of one call that need one another too; returns job id -> handle.

        `on_taken` is told of each array. An array for which the queue has no room is halved until a part fits.
        Raises: ConfigError for a folder that SLURM would read as another one; NotNow where SLURM takes no more now;
            RapidunError where it refuses these jobs. What `on_taken` was told of stays submitted.
        """
        self.refuse_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.drop_doubtful()
        known = dict(handles)
        taken: dict[str, str] = {}
        ends: list[list[str]] = []
        # what an earlier call could not submit keeps to max_parallel by waiting for what it could
        before = list(known.values()) if self.cut_short and self.context.max_parallel else []
        forgotten = self.ended([*(known[need] for job in jobs for need in job.needs if need in known), *before])
        for array in self.arrays(jobs):
            needed = [known[need] for need in array.jobs[0].needs if need in known]
            needed += before + ([] if array.after is None else ends[array.after])
            ends.append([])
            rest, size = array.jobs, len(array.jobs)
            while rest:
                if interrupted():
                    raise NotNow("interrupted")
                alive = [handle for handle in dict.fromkeys(needed) if handle not in forgotten]
                part = array._replace(jobs=rest[:size])
                try:
                    new = self.submit_array(
                        part, dependency=dependency_text(alive, known=list(known.values())), interrupted=interrupted
                    )
                except QueueFull as full:
                    self.cut_short = True
                    if size > 1:
                        size = max(1, len(part.jobs) // 2)
                        continue
                    if isinstance(full, OverALimit) and not self.any_open(known.values()):
                        # not for the number of jobs
                        raise RapidunError(f"SLURM took no jobs: {full}{CHECK}") from None
                    raise
                rest = rest[len(part.jobs) :]
                ends[-1] += new.values()
                taken |= new
                known |= new
                on_taken(new)
                if self.context.max_parallel:
                    # its parts, side by side, would be more than the whole may be
                    needed += new.values()
        return taken

    def refuse_folder(self) -> None:
        faults = folder_faults(self.folder)
        if faults:
            raise ConfigError(faults)

    def submit_array(self, array: Array, *, dependency: str, interrupted: Callable[[], bool]) -> dict[str, str]:
        executor = Executor(self.folder, interrupted=interrupted)
        executor.max_num_timeout = array.jobs[0].resources.max_timeouts
        executor.update_parameters(**self.parameters(array, dependency=dependency))
        comment = new_comment(self.folder, [job.id for job in array.jobs])
        calls = [RunJobFile(str(job.file.absolute()), self.target) for job in array.jobs]
        try:
            handles = executor.submit_calls(calls, comment=comment)
        except InDoubt:
            self.doubtful.append(comment)
            raise
        except RapidunError:
            forget(self.folder, comment)
            raise
        except OSError as error:
            raise RapidunError(f"SLURM took no jobs: {error}{CHECK}") from None
        return {job.id: handle for job, handle in zip(array.jobs, handles, strict=True)}

    def drop_doubtful(self) -> None:
        """Cancel what SLURM has taken after all: its calls are gone, and it is submitted anew.

        Raises: NotNow where SLURM still does not answer.
        """
        for comment in list(self.doubtful):
            try:
                if base := base_of(comment):
                    slurm("scancel", base)
            except (SlurmUnreachable, SlurmRefused) as error:
                raise NotNow(str(error)) from None
            self.doubtful.remove(comment)

    def any_open(self, handles: Iterable[str]) -> bool:
        """Whether one of these jobs waits or runs."""
        states = self.states({handle: handle for handle in handles})
        return any(state.phase in (Phase.waiting, Phase.running) for state in states.values())

    def arrays(self, jobs: Sequence[Job]) -> list[Array]:
        """Cut jobs into legal arrays, in an order in which each comes after those that it needs."""
        size = self.array_size()
        arrays: list[Array] = []
        for wave in waves(jobs):
            groups: dict[tuple[Any, ...], list[Job]] = {}
            for job in wave:
                groups.setdefault((frozenset(job.needs), repr(job.resources)), []).append(job)
            chunks = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
            arrays += share_out(chunks, limit=self.context.max_parallel, first=len(arrays))
        return arrays

    def array_size(self) -> int:
        """The most tasks of an array: SLURM's MaxArraySize (indices stay below it), or less where the user says so."""
        wished = self.context.cluster.max_array_size
        try:
            site = int(self.site().get("MaxArraySize", USUAL_MAX_ARRAY_SIZE))
        except SlurmUnreachable:
            site = USUAL_MAX_ARRAY_SIZE
        return max(1, min(site, wished or site))

    def parameters(self, array: Array, *, dependency: str) -> dict[str, Any]:
        return sbatch_parameters(
            self.context.cluster,
            array.jobs[0].resources,
            name=self.name,
            array_parallelism=array.parallel,
            dependency=dependency,
        )

    def ended(self, handles: Sequence[str]) -> set[str]:
        """Which of these jobs SLURM has forgotten or finished: nothing waits for them."""
        states = self.states({handle: handle for handle in handles})
        return {handle for handle, state in states.items() if state.phase not in (Phase.waiting, Phase.running)}

    # Afterwards

    def unnoted_handles(self, ids: Sequence[str], *, drop_broken: bool) -> dict[str, str]:
        """SLURM keeps a token with each submission, by which they are found again."""
        found = unnoted_handles(self.folder, ids)
        broken = without_call(self.folder, found)
        if drop_broken:
            self.cancel(broken)
        return {id: handle for id, handle in found.items() if id not in broken or not drop_broken}

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        """The state of each job, by one call of scontrol for each array; never hangs."""
        seen: dict[str, Seen] = {}
        fault = ""
        wanted = {
            handle.partition("_")[0] for handle in handles.values() if handle not in self.last or self.open(handle)
        }
        for base in sorted(wanted, key=int):
            try:
                seen |= self.look(base)
            except SlurmUnreachable as error:
                # the others would take as long
                fault = str(error)
                break
        if not fault:
            try:
                seen |= self.look_back([h for h in handles.values() if h not in seen and self.open(h)])
            except SlurmUnreachable as error:
                fault = str(error)
        return {job: self.state(handle, seen=seen, fault=fault) for job, handle in handles.items()}

    def state(self, handle: str, *, seen: Mapping[str, Seen], fault: str) -> JobState:
        if not self.open(handle):
            return self.last[handle]
        if handle in seen:
            self.last[handle] = interpret(seen[handle], log=self.log_tail(handle, seen[handle]))
            return self.last[handle]
        if fault:
            return JobState(self.last.get(handle, JobState(Phase.waiting)).phase, fault)
        # tasks of an array that are cancelled before they start leave no trace beside the others
        others = any(known.partition("_")[0] == handle.partition("_")[0] for known in seen)
        self.last[handle] = JobState(
            Phase.gone, "cancelled before it started, or forgotten by SLURM" if others else FORGOTTEN
        )
        return self.last[handle]

    def open(self, handle: str) -> bool:
        """Whether the state of a job can still change: SLURM itself queues a job again that lost its node."""
        last = self.last.get(handle)
        return last is None or last.phase in (Phase.waiting, Phase.running) or last.cause in QUEUED_AGAIN

    def look(self, base: str) -> dict[str, Seen]:
        """What SLURM shows of a job or of all tasks of an array; nothing if it has forgotten them."""
        try:
            return parse_jobs(slurm("scontrol", "-o", "show", "job", base))
        except SlurmRefused:
            return {}

    def look_back(self, handles: Sequence[str]) -> dict[str, Seen]:
        """What the accounting database, if there is one, tells about jobs that slurmctld has forgotten."""
        if not handles or self.site().get("AccountingStorageType", "").endswith(("none", "(null)")):
            return {}
        bases = sorted({handle.partition("_")[0] for handle in handles}, key=int)
        with suppress(SlurmRefused):
            return parse_sacct(slurm("sacct", "-nPX", "-o", "JobID,State,ExitCode", "-j", ",".join(bases)))
        return {}

    def site(self) -> dict[str, str]:
        if self.settings is None:
            self.settings = site_settings()
        return self.settings

    def cancel(self, handles: Mapping[str, str]) -> None:
        """One scancel for all jobs that may still run; those of one array as one name. A slow scancel goes on alone."""
        tasks: dict[str, list[str]] = {}
        for handle in handles.values():
            if self.open(handle):
                tasks.setdefault(handle.partition("_")[0], []).append(handle)
        names = []
        for base, members in tasks.items():
            numbers = [task_number(handle) for handle in members if "_" in handle]
            names.append(f"{base}_[{compress_tasks(numbers)}]" if numbers else base)
        if not names:
            return
        process = subprocess.Popen(
            ["scancel", *names], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=CANCEL_WAIT_S)
        except subprocess.TimeoutExpired:
            LATE.append(process)

    def log(self, handle: str) -> Path | None:
        """What the job's first process printed; with several, the others' files lie beside it."""
        path = self.folder / f"{handle}_0_log.out"
        return path if path.exists() else None

    def log_tail(self, handle: str, seen: Seen) -> str:
        """The end of the log of a job that failed, from its last start on."""
        path = self.log(handle)
        if seen.state != "FAILED" or path is None:
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        return text.rpartition("Starting with JobEnvironment(")[2]


# scancel calls that had not ended: kept, so that Python does not warn about them
LATE: list["subprocess.Popen[bytes]"] = []


def waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs by how many of these jobs must end one after the other before them."""
    by_id = {job.id: job for job in jobs}
    depth: dict[str, int] = {}
    rest = list(jobs)
    while rest:
        ready = [job for job in rest if all(need in depth or need not in by_id for need in job.needs)]
        if not ready:
            raise ValueError(f"jobs that need one another in a circle: {', '.join(job.id for job in rest)}")
        for job in ready:
            depth[job.id] = 1 + max((depth[need] for need in job.needs if need in by_id), default=-1)
        rest = [job for job in rest if job.id not in depth]
    found: list[list[Job]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for job in jobs:
        found[depth[job.id]].append(job)
    return found


def share_out(chunks: list[list[Job]], *, limit: int, first: int) -> list[Array]:
    """Give each array of a wave its part of the limit; those beyond it start after another has ended.

    `first` is the number of the wave's first array.
    """
    if limit <= 0:
        return [Array(chunk, len(chunk), None) for chunk in chunks]
    lanes = min(limit, len(chunks))
    parts = [limit // lanes + (lane < limit % lanes) for lane in range(lanes)] if lanes else []
    return [Array(chunk, parts[i % lanes], first + i - lanes if i >= lanes else None) for i, chunk in enumerate(chunks)]
