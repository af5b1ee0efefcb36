"""What a launcher does: take jobs, say how they are, stop them. The truth about a cell is in its run folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from rapidun.base.errors import RapidunError
from rapidun.config.sweep import ClusterConfig, ResourcesConfig

# seconds that `cancel` waits on this machine for jobs to end by themselves, before it kills them
CANCEL_WAIT_S = 1.0
# the cause where a pool of processes ended because one of them was killed: it does not tell which
POOL_DIED = "a worker was killed"


class NotNow(RapidunError):
    """The scheduler takes no more jobs now: later it may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One unit of submission: `file` is what the worker reads (see worker.py), a JSON file `<id>.json`."""

    # unique in the sweep; letters, digits, `-` and `_`
    id: str
    file: Path
    # jobs that must have ended, well or not, before this one starts
    needs: tuple[str, ...] = ()
    resources: ResourcesConfig


class Phase(Enum):
    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"
    # nobody knows the handle any more: the run folders tell what became of it
    gone = "gone"


class JobState(NamedTuple):
    phase: Phase
    # why a job failed, in a few words: `out of memory`, `time limit`, `cancelled`, `killed by signal 9`, `node failure`
    cause: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LauncherContext:
    """What every launcher is made with."""

    # folder of the sweep; launchers keep their files in its `jobs/`
    sweep_dir: Path
    cluster: ClusterConfig
    # jobs at the same time; 0 = no limit
    max_parallel: int = 0


class Launcher(Protocol):
    """Starts jobs somewhere; handles are strings that a later process can use.

    A launcher inherits from this and says what it can do by the flags below: nobody asks for its name.
    """

    # jobs may be submitted before those that they need have ended: the scheduler holds them back
    submits_ahead: bool = False
    # everything submitted goes on when this process ends, so that it may end at once (sweep.detach)
    detachable: bool = False
    # jobs that have started go on when this process ends, and a later one finds them by their handles
    outlives_driver: bool = False
    # `submit` runs the job itself, in this process: the driver hands over one, so that it can look between two
    one_at_a_time: bool = False
    # several jobs run in one process: what one has loaded may stay for the next
    shares_process: bool = False
    # jobs run on other machines than the one that plans
    runs_elsewhere: bool = False

    def __init__(self, context: LauncherContext) -> None: ...

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """What the machine or cluster would refuse, or leave pending for ever: one line a fault."""

    def submit(
        self,
        jobs: Sequence[Job],
        *,
        handles: Mapping[str, str],
        on_taken: Callable[[Mapping[str, str]], object] = lambda handles: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> dict[str, str]:
        """Submit jobs; return job id -> handle.

        Args: handles: of jobs submitted before, for `needs`. on_taken: told of each part as soon as it is submitted,
            where the whole takes several steps. interrupted: whether to leave the rest for later.
        Raises: NotNow where the scheduler takes no more now; what `on_taken` was told of stays submitted.
        """

    def states(self, handles: Mapping[str, str]) -> dict[str, JobState]:
        """The state of each job by its id."""

    def cancel(self, handles: Mapping[str, str]) -> None:
        """Stop these jobs; those that have ended are left alone. Returns within two seconds."""

    def log(self, handle: str) -> Path | None:
        """The file that holds what a job printed."""

    def script(self, jobs: Sequence[Job]) -> str:
        """What would be submitted, for the dry run; empty where nothing is handed to another program."""
        return ""

    def unnoted_handles(self, ids: Sequence[str], *, drop_broken: bool) -> dict[str, str]:
        """Handles of those of these jobs that a process submitted which was killed before it could note them.

        Args: drop_broken: cancel those whose submission was cut off half-way; only who drives the sweep may.
        """
        return {}
