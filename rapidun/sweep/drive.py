"""The loop over a sweep's jobs: submit what can start, watch, say what became of dead ones, end when told to.

All that it knows is in files: killed at any moment, the next process that looks at the sweep goes on from there.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapidun.files import read_json, write_json
from rapidun.sweep.folder import SweepFolder
from rapidun.sweep.launchers.base import Job, JobState, Launcher, Phase

POLL_SECONDS = 0.5
# how often a cell is started again whose job ended without having run it to its end
MAX_ATTEMPTS = 3
OVER = (Phase.done, Phase.failed, Phase.gone)


@dataclass
class Watched:
    """A job of this sweep as the driver sees it."""

    job: Job
    # run folders that it writes
    folders: list[str]
    handle: str | None = None
    attempt: int = 1
    over: bool = False


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
    stopped: str | None = None
    _checked: float = field(default=0.0)

    @property
    def handles(self) -> dict[str, str]:
        return {id: watched.handle for id, watched in self.watched.items() if watched.handle is not None}

    def submit_all(self) -> None:
        """Hand everything to a scheduler that holds jobs back until what they need has ended."""
        waiting = [watched.job for watched in self.watched.values() if watched.handle is None]
        self._submit(waiting)

    def run(self) -> None:
        """Until every job is over. An interrupt passes through; `interrupt` then ends or keeps the jobs."""
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
        self.launcher.cancel(self.handles_under_way())

    def _submit_ready(self) -> None:
        if self.stopped:
            return
        over = {id for id, watched in self.watched.items() if watched.over}
        ready = [
            watched.job
            for watched in self.watched.values()
            if watched.handle is None
            and not watched.over
            and (
                self.launcher.submits_ahead
                or all(need in over or need not in self.watched for need in watched.job.needs)
            )
        ]
        if getattr(self.launcher, "one_at_a_time", False):
            ready = ready[:1]
        self._submit(ready)

    def _submit(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        # first the intention, so that a kill in the middle leaves a trace
        self._note({job.id: None for job in jobs})
        handles = self.launcher.submit(jobs, handles=self.handles)
        for id, handle in handles.items():
            self.watched[id].handle = handle
        self._note(handles)

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
                }
                for id, handle in handles.items()
            }
        )

    def _look(self) -> None:
        states = self.launcher.states(self.handles_under_way())
        for id, state in states.items():
            if state.phase in OVER:
                self._end(self.watched[id], state)
        if self.max_failures is not None and self.stopped is None:
            failed = self._count_failed()
            if failed >= self.max_failures:
                self.stopped = f"{failed} failed, sweep.max_failures or fail_fast allow {self.max_failures}"
                self.sweep.stop(self.stopped)
                self.cancel()

    def _count_failed(self) -> int:
        folders = [name for watched in self.watched.values() if watched.over for name in watched.folders]
        return sum(state.state == "failed" for state in self.sweep.states(folders).values())

    def _end(self, watched: Watched, state: JobState) -> None:
        """A job is over: give every run folder that it left unfinished its cause, or start it again."""
        watched.over = True
        again: list[str] = []
        for name, found in self.sweep.states(watched.folders).items():
            if found.state in ("done", "failed", "pruned"):
                continue
            cause = state.cause or ("its job ended without a word" if state.phase is not Phase.done else "")
            untouched = found.state == "waiting"
            collateral = cause == "a worker was killed"
            if self.stopped or cause == "cancelled":
                if cause == "cancelled" and not self.stopped:
                    self.sweep.mark(name, "cancelled")
                continue
            # its job died before its turn came, or beside another: not its own fault
            innocent = (untouched and len(watched.folders) > 1) or collateral or found.state == "interrupted"
            if innocent and watched.attempt < MAX_ATTEMPTS:
                again.append(name)
                continue
            self.sweep.mark(name, cause or "its job ended without running it")
        if watched.handle is not None:
            self._note({watched.job.id: watched.handle})
        if again:
            self._again(watched, again)

    def _again(self, watched: Watched, names: Sequence[str]) -> None:
        """A new job for the run folders that a dead one did not get to."""
        attempt = watched.attempt + 1
        id = f"{watched.job.id.partition('_again')[0]}_again{attempt}"
        content = read_json(watched.job.file)
        content["id"] = id
        content["units"] = [unit for unit in content["units"] if unit["folder"] in names]
        file = watched.job.file.with_name(f"{id}.json")
        write_json(file, content)
        job = Job(id=id, file=file, needs=(), resources=watched.job.resources)
        self.watched[id] = Watched(job, list(names), attempt=attempt)


def live_jobs(jobs: Mapping[str, Mapping[str, Any]], launcher_of: Callable[[str], Launcher]) -> dict[str, JobState]:
    """The jobs of earlier launches that wait or run, as their launchers see them now."""
    by_launcher: dict[str, dict[str, str]] = {}
    for id, job in jobs.items():
        if job.get("handle") and not job.get("over"):
            by_launcher.setdefault(job["launcher"], {})[id] = job["handle"]
    found: dict[str, JobState] = {}
    for name, handles in by_launcher.items():
        launcher = launcher_of(name)
        if launcher.detachable or name == "rapidun_local":
            found.update(launcher.states(handles))
    return {id: state for id, state in found.items() if state.phase in (Phase.waiting, Phase.running)}
