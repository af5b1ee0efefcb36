"""The loop over a sweep's jobs: submit what can start, watch, say what became of dead ones, end when told to.

All that it knows is in files: killed at any moment, the next process that looks at the sweep goes on from there.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json
from rapidun.config.sweep import ResourcesConfig
from rapidun.sweep.folder import ENDED, SweepFolder
from rapidun.sweep.interrupts import deferred
from rapidun.sweep.launcher import POOL_DIED, Job, JobState, Launcher, NotNow, Phase

POLL_SECONDS = 0.5
# how often a cell is started again whose job ended without having run it to its end
MAX_ATTEMPTS = 3
OVER = (Phase.done, Phase.failed, Phase.gone)
# where the scheduler has no room for more jobs
TRY_AGAIN_SECONDS = 10.0
# seconds that cancelled jobs have to write how far they came
SETTLING_SECONDS = 1.5


@dataclass
class Watched:
    """A job of this sweep as the driver sees it."""

    job: Job
    # run folders that it writes
    folders: list[str]
    handle: str | None = None
    attempt: int = 1
    over: bool = False
    # stopped by us, not by somebody else: what it left goes on with the next launch
    cancelled: bool = False
    # runs with no other job beside it, so that if a process dies it was this one's
    alone: bool = False


@dataclass
class Driver:
    """Drives the jobs of one launch (and those of earlier ones that are still under way) to their end."""

    sweep: SweepFolder
    launcher: Launcher
    launcher_name: str
    launch: int
    watched: dict[str, Watched]
    # failures that end the sweep; None = none does
    max_failures: int | None = None
    on_change: Callable[["Driver"], object] = lambda driver: None
    say: Callable[[str], object] = lambda text: None
    # False: nothing is started, new or again; only what is under way is watched
    submits: bool = True
    stopped: str | None = None
    # what was said of the last try, if the scheduler did not take all jobs
    held_back: str = ""
    _next_try: float = 0.0

    @property
    def handles(self) -> dict[str, str]:
        return {id: watched.handle for id, watched in self.watched.items() if watched.handle is not None}

    def submit_all(self) -> None:
        """Hand everything to a scheduler that holds jobs back until what they need has ended.

        Where it has no room for all of them, `run` submits the rest as there is.
        """
        self._submit([watched.job for watched in self.unsubmitted()])

    def unsubmitted(self) -> list[Watched]:
        return [watched for watched in self.watched.values() if watched.handle is None and not watched.over]

    def run(self) -> None:
        """Until every job is over. An interrupt passes through: `cancel` then ends the jobs, or they go on."""
        while True:
            self._submit_ready()
            self._look()
            self.on_change(self)
            if all(watched.over for watched in self.watched.values()):
                return
            if self.stopped and not self.handles_under_way():
                return
            time.sleep(POLL_SECONDS)

    def handles_under_way(self) -> dict[str, str]:
        return {
            id: watched.handle
            for id, watched in self.watched.items()
            if watched.handle is not None and not watched.over
        }

    def cancel(self) -> None:
        """Stop every job of this sweep."""
        handles = self.handles_under_way()
        if not handles:
            return
        for id in handles:
            self.watched[id].cancelled = True
        # noted first: whoever looks next takes these for stopped, not for failed
        self._note(handles)
        self.launcher.cancel(handles)

    def settle(self) -> None:
        """After `cancel`: wait a moment for the jobs to end, then write `interrupted` for what was killed."""
        deadline = time.monotonic() + SETTLING_SECONDS
        names = [name for watched in self.watched.values() if not watched.over for name in watched.folders]
        while time.monotonic() < deadline and "running" in self._states_of(names):
            time.sleep(0.1)
        for name, found in self.sweep.states(names).items():
            if found.state in ("running", "lost"):
                self.sweep.mark(name, "its job was cancelled", state="interrupted")

    def _states_of(self, names: Sequence[str]) -> set[str]:
        return {found.state for found in self.sweep.states(names).values()}

    def _submit_ready(self) -> None:
        if self.stopped or not self.submits or time.monotonic() < self._next_try:
            return
        over = {id for id, watched in self.watched.items() if watched.over}
        ready = [
            watched
            for watched in self.unsubmitted()
            if self.launcher.submits_ahead
            or all(need in over or need not in self.watched for need in watched.job.needs)
        ]
        under_way = [self.watched[id] for id in self.handles_under_way()]
        if any(watched.alone for watched in under_way):
            return
        if any(watched.alone for watched in ready):
            # one at a time, when everything beside it has ended
            ready = [watched for watched in ready if watched.alone][:1] if not under_way else []
        if self.launcher.one_at_a_time:
            ready = ready[:1]
        self._submit([watched.job for watched in ready])

    def _submit(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        # jobs of this process itself run within `submit`, where an interrupt must reach them
        within = nullcontext(lambda: False) if self.launcher.one_at_a_time else deferred()
        with within as interrupted:
            # first the intention, so that a kill in the middle leaves a trace
            self._note({job.id: None for job in jobs})
            try:
                handles = self.launcher.submit(
                    jobs, handles=self.handles, on_taken=self._taken, interrupted=interrupted
                )
                self._taken({id: handle for id, handle in handles.items() if self.watched[id].handle != handle})
            except NotNow as later:
                if not interrupted():
                    self._hold_back(str(later))
            else:
                self.held_back = ""

    def _taken(self, handles: Mapping[str, str]) -> None:
        for id, handle in handles.items():
            self.watched[id].handle = handle
        self._note(handles)

    def _hold_back(self, reason: str) -> None:
        """Try again later; say so, and again when anything of it changes."""
        left, total = len(self.unsubmitted()), len(self.watched)
        text = (
            f"no more jobs are taken now ({reason}): {total - left} of {total} are submitted, the rest as there is room"
        )
        if text != self.held_back:
            self.say(text)
        self.held_back = text
        self._next_try = time.monotonic() + TRY_AGAIN_SECONDS

    def _note(self, handles: Mapping[str, str | None]) -> None:
        self.sweep.note_jobs(
            {
                id: {
                    "launcher": self.launcher_name,
                    "launch": self.launch,
                    "handle": handle,
                    "folders": self.watched[id].folders,
                    "needs": list(self.watched[id].job.needs),
                    "over": self.watched[id].over,
                    "cancelled": self.watched[id].cancelled,
                }
                for id, handle in handles.items()
            }
        )

    def _look(self) -> None:
        if self.submits and self.stopped is None and (reason := self.sweep.stopped()):
            # a worker counted the last failure allowed, or somebody called `rapidun sweep cancel`
            self._end_early(reason)
        states = self.launcher.states(self.handles_under_way())
        for id, state in states.items():
            if state.phase in OVER:
                self._end(self.watched[id], state)
        if self.max_failures is not None and self.stopped is None:
            failed = self._count_failed()
            if failed >= self.max_failures:
                reason = f"{failed} failed, sweep.max_failures or fail_fast allow {self.max_failures}"
                self.sweep.stop(reason)
                self._end_early(reason)

    def _end_early(self, reason: str) -> None:
        self.stopped = reason
        self.cancel()

    def _count_failed(self) -> int:
        folders = [name for watched in self.watched.values() if watched.over for name in watched.folders]
        return sum(state.state == "failed" for state in self.sweep.states(folders).values())

    def _end(self, watched: Watched, state: JobState) -> None:
        """A job is over: give every run folder that it left unfinished its cause, or start it again."""
        watched.over = True
        cause = state.cause or ("its job ended without a word" if state.phase is not Phase.done else "")
        if watched.alone and cause == POOL_DIED:
            cause = "its process was killed"
        again: list[str] = []
        for name, found in self.sweep.states(watched.folders).items():
            if found.state in ENDED:
                continue
            if self.stopped:
                if found.state in ("running", "lost"):
                    self.sweep.mark(name, "its job was cancelled", state="interrupted")
            elif watched.cancelled or (
                watched.attempt < MAX_ATTEMPTS and _innocent(name, found.state, cause, alone=len(watched.folders) == 1)
            ):
                again.append(name)
            else:
                self.sweep.mark(name, cause or "its job ended without running it")
        if watched.handle is not None:
            self._note({watched.job.id: watched.handle})
        if again and not self.submits:
            for name in again:
                self.sweep.mark(name, "its job ended before it did", state="interrupted")
        elif again:
            self._again(watched, again, alone=cause == POOL_DIED)

    def _again(self, watched: Watched, names: Sequence[str], *, alone: bool) -> None:
        """A new job for the run folders that a dead one did not get to; what waited for the dead one waits for it."""
        # one that we cancelled ourselves has not failed
        attempt = watched.attempt + (not watched.cancelled)
        stem = watched.job.id.partition("_again")[0]
        id = next(id for n in itertools.count(2) if (id := f"{stem}_again{n}") not in self.watched)
        content = read_json(watched.job.file)
        content["id"] = id
        content["units"] = [unit for unit in content["units"] if unit["folder"] in names]
        file = self.sweep.job_file(id)
        self.sweep.write_job(id, content)
        for name, found in self.sweep.states(names).items():
            if found.state in ("running", "lost"):
                self.sweep.mark(name, "its job ended; it goes on in another", state="interrupted")
        job = Job(id=id, file=file, needs=(), resources=watched.job.resources)
        self.watched[id] = Watched(job, list(names), attempt=attempt, alone=alone)
        for other in self.watched.values():
            if other.handle is None and watched.job.id in other.job.needs:
                needs = tuple(id if need == watched.job.id else need for need in other.job.needs)
                other.job = replace(other.job, needs=needs)


def _innocent(name: str, state: str, cause: str, *, alone: bool) -> bool:
    """Whether a run folder is unfinished by no fault of its own: its job died before its turn, or beside another."""
    if cause == POOL_DIED:
        return True
    if cause in ("cancelled", "time limit"):
        # a limit cuts off the cell that ran; those behind it never had their time
        return cause == "time limit" and state == "waiting" and not alone
    if state == "interrupted":
        return True
    # a shared artifact whose turn had not come needs the one before it
    return state == "waiting" and not alone and not name.startswith("stages/")


def watched_entry(id: str, entry: dict[str, Any], folder: SweepFolder) -> Watched:
    """A job of jobs.json, to be watched again."""
    file = folder.job_file(id)
    try:
        resources = ResourcesConfig(**read_json(file)["units"][0]["config"]["resources"])
    except (ArtifactError, KeyError, IndexError, TypeError):
        # damaged: what the job runs it has read already, and one that is started again says so
        resources = ResourcesConfig()
    job = Job(id=id, file=file, needs=tuple(entry["needs"]), resources=resources)
    return Watched(
        job, list(entry["folders"]), handle=entry["handle"], cancelled=entry.get("cancelled", False)
    )  # fmt: skip
