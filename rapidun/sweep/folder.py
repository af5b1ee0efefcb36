"""The files of a sweep, the only thing that its processes share: what is planned, what was submitted, how cells are.

outputs/sweeps/<name>/
  private.json          sweep.json with the secrets that it leaves out, mode 0600; absent where there are none
  sweep.json            cells, jobs and settings of the newest launch
  jobs.json             every job ever submitted: launcher, handle, cells or artifacts
  jobs/<id>.json        what the worker of a job reads
  stages/<kind>-<fp>/   run folders of artifacts that several cells share
  <cell hash>/          run folders of the cells
  stop.json             why no further cell of this launch is started, and the jobs that were told to end
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.base import heartbeat
from rapidun.base.errors import ArtifactError, ConfigError, RapidunError
from rapidun.base.files import read_json, write_json
from rapidun.base.grown import append_line, read_grown
from rapidun.base.limits import refusal
from rapidun.base.locks import Lease, Wait
from rapidun.base.parts import sweep_parts
from rapidun.base.redact import hide
from rapidun.report.read import is_status

SWEEPS = Path("outputs/sweeps")
PRIVATE = "private.json"
DRIVER_LEASE = "driver.lease"
# states of a cell; `waiting` has no status.json yet, `lost` says running but has not been heard of for long
ENDED = ("done", "failed", "pruned")


@dataclass(frozen=True, kw_only=True, slots=True)
class CellState:
    """How a run folder of the sweep is, from its files alone."""

    state: str
    stage: str | None = None
    # share of the running stage that is done, 0 to 1
    progress: float = 0.0
    error: str = ""
    seconds: float = 0.0
    restarts: int = 0
    job: str | None = None
    git_commit: str | None = None
    # link name -> `kind/fingerprint`
    artifacts: Mapping[str, str] | None = None


class SweepFolder:
    """Owns outputs/sweeps/<name>."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # what was found in its files that is not as we write it, each said once
        self.odd: dict[str, None] = {}

    @classmethod
    def existing(cls, path: Path) -> "SweepFolder":
        """Raises: ConfigError if `path` is not the folder of a sweep that was launched."""
        if not (path / "sweep.json").is_file():
            raise ConfigError(f"sweep: need the folder of a sweep (with sweep.json), got {path}. Look below {SWEEPS}")
        folder = cls(path)
        if not folder.cells():
            raise ConfigError(f"{path / 'sweep.json'}: need cells, got none. Run the sweep's own command again")
        return folder

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write sweep.json.

        Raises: ConfigError if the folder cannot be written.
        """
        shown = hide(plan)
        try:
            if shown != plan:
                write_json(self.path / PRIVATE, plan, private=True)
            write_json(self.path / "sweep.json", shown)
            if shown == plan:
                (self.path / PRIVATE).unlink(missing_ok=True)
        except OSError as error:
            raise self.not_writable(error) from None

    def not_writable(self, error: OSError) -> RapidunError:
        """What to say of an error while writing into the folder."""
        return refusal(error, {"sweep.name": self.path}) or ConfigError(
            f"sweep.name: need a folder that can be written, got {self.path} ({error.strerror}). Pass sweep.name=..."
        )

    def plan(self) -> dict[str, Any]:
        """The contents of sweep.json; empty before the first launch. With secrets where this is the owner."""
        shown = self._read("sweep.json")
        whole = self._read_private()
        return whole if whole and all(whole.get(key) == shown.get(key) for key in ("launch", "time")) else shown

    def _read_private(self) -> dict[str, Any]:
        try:
            return self._read(PRIVATE)
        except PermissionError:
            return {}
        except ArtifactError as error:
            # it says no more than sweep.json but to who runs cells again
            self.say_odd(str(error).removesuffix(". Delete it and run again"))
            return {}

    def write_job(self, id: str, content: Mapping[str, Any]) -> None:
        """Write what the worker of a job reads: for the owner alone where a setting that it needs is a secret."""
        write_json(self.job_file(id), content, private=hide(content) != content)

    def cells(self) -> list[dict[str, Any]]:
        """The cells of sweep.json: {"hash", "overrides", "axes", ...} each."""
        found = self.plan().get("cells")
        entries = found if isinstance(found, list) else []
        good = [entry for entry in entries if _is_cell(entry)]
        if len(good) < len(entries):
            number = len(entries) - len(good)
            self.say_odd(f"{self.path / 'sweep.json'}: {number} cells are left out, being not as a launch writes them")
        return good

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Job id -> {"launcher", "launch", "handle", "folders", "needs", "over", "cancelled"}, of every launch.

        What is not as we write it is left out, and stands in `odd`.
        """
        try:
            found = self._read("jobs.json")
        except ArtifactError as error:
            self.say_odd(f"{error}; nothing is known of the jobs of earlier launches")
            return {}
        good = {id: job for id, job in found.items() if _is_job(job)}
        for id in found.keys() - good.keys():
            self.say_odd(f"{self.path / 'jobs.json'}: need what is known of the job {id}, got JSON of another shape")
        return good

    def note_jobs(self, jobs: Mapping[str, Mapping[str, Any]]) -> None:
        """Add jobs to jobs.json; only the process that holds the driver's lease may."""
        if jobs:
            write_json(self.path / "jobs.json", {**self.jobs(), **jobs})

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        found = read_json(path) if path.is_file() else {}
        if not isinstance(found, dict):
            self.say_odd(f"{path}: need a JSON object, got {type(found).__name__}")
            return {}
        return found

    def say_odd(self, line: str) -> None:
        """Note what is not as we write it."""
        self.odd[line] = None

    def folder(self, name: str) -> Path:
        """The run folder of a cell (its hash) or of a shared artifact (`stages/<kind>-<fp>`)."""
        return self.path / name

    def job_file(self, id: str) -> Path:
        """What the worker of a job reads; absolute, since jobs may start elsewhere."""
        return (self.path / "jobs" / f"{id}.json").resolve()

    def states(self, names: Iterable[str]) -> dict[str, CellState]:
        return {name: read_state(self.path / name) for name in names}

    def mark(self, name: str, cause: str, *, state: str = "failed") -> None:
        """Write what the run itself could not: how it ended.

        Args: cause: in a few words, e.g. `killed by signal 9`.
        """
        path = self.path / name / "status.json"
        found: dict[str, Any] = {"stages": {}, "stage": None}
        # a damaged one is told as such by `read_state`, and is written anew here
        with suppress(ArtifactError):
            before = read_json(path)
            found.update(before if isinstance(before, dict) else {})
        found.update(
            state=state,
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            error={"message": hide(cause), "traceback": ""},
        )  # fmt: skip
        write_json(path, found)
        (self.path / name / "alive.json").unlink(missing_ok=True)

    # Ending early

    def stop(self, reason: str, *, handles: Iterable[str] = ()) -> None:
        """Let no job of this launch start a further cell.

        Args: handles: of jobs that were told to end, which takes them a while.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(self.path / "stop.json", {"reason": reason, "time": now, "handles": sorted(handles)})

    def told_to_end(self) -> set[str]:
        """Handles of the jobs that `stop` was given."""
        found = self._read("stop.json").get("handles", [])
        return set(map(str, found)) if isinstance(found, list) else set()

    def stopped(self) -> str | None:
        """Why no further cell is to be started, or None."""
        return str(self._read("stop.json").get("reason")) if (self.path / "stop.json").is_file() else None

    def clear_stop(self) -> None:
        for name in ("stop.json", "failures.jsonl"):
            (self.path / name).unlink(missing_ok=True)

    def count_failure(self, name: str) -> int:
        """Note one failed cell of this launch; return how many there are."""
        path = self.path / "failures.jsonl"
        # one write of one short line: processes on several nodes may append at once
        append_line(path, {"folder": name})
        return len({str(line["folder"]) for line in read_grown(path, "folder")[0]})


class SweepLock:
    """One process at a time drives a sweep. One that was told to stop is waited for.

    Args: tell: gets a line for a wait.
    """

    def __init__(self, folder: SweepFolder, *, tell: Callable[[str], None] = lambda line: None) -> None:
        self.tell = tell
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise folder.not_writable(error) from None
        self.folder = folder
        self.lease = Lease(folder.path / DRIVER_LEASE)

    def __enter__(self) -> None:
        wait = Wait(str(self.folder.path), self.tell)
        try:
            while not (taken := self.lease.try_acquire()) and self.folder.stopped():
                wait.pause(lambda: f"{self.lease.holder()} ends it, as it was told to")
        except OSError as error:
            raise self.folder.not_writable(error) from None
        wait.end()
        if not taken:
            raise ConfigError(
                f"sweep: need {self.folder.path} for this process alone, but {self.lease.holder()} drives it (this is "
                f"process {os.getpid()}). rapidun sweep status {self.folder.path} looks on; or pass sweep.name=..."
            )
        sweep_parts(self.folder.path, self.folder.path / "jobs")

    def __exit__(self, *error: object) -> None:
        self.lease.release()
        # refused before anything was written: no trace is left
        with suppress(OSError):
            self.folder.path.rmdir()


def is_driven(folder: SweepFolder) -> bool:
    """Whether a process drives the sweep, as far as looking tells."""
    return Lease(folder.path / DRIVER_LEASE).seems_held()


def read_state(folder: Path) -> CellState:
    """The state of one run folder, from its files alone; one whose status is not as we write it has failed."""
    path = folder / "status.json"
    try:
        status = read_json(path) if path.is_file() else {}
    except ArtifactError as error:
        return CellState(state="failed", error=str(error))
    if status == {}:
        return CellState(state="waiting")
    if not is_status(status) or "state" not in status:
        return CellState(state="failed", error=f"{path}: need what a run says of itself, got JSON of another shape")
    state = str(status.get("state"))
    alive = heartbeat.read(folder / "alive.json") if state == "running" else {}
    since = heartbeat.seconds_since(folder / "alive.json")
    if state == "running" and since is not None and since > heartbeat.STALE_SECONDS:
        state = "lost"
    stages, said = status.get("stages", {}), status.get("error")
    return CellState(
        state=state,
        stage=status.get("stage"),
        progress=_share(alive.get("done"), alive.get("total")),
        error=str(said.get("message", "") if isinstance(said, dict) else said or "").split("\n")[0],
        seconds=sum(stage.get("seconds", 0) for stage in stages.values() if not stage.get("cached")),
        restarts=int(status.get("restarts", 0)),
        job=status.get("job"),
        git_commit=status.get("git_commit"),
        artifacts={link: id for stage in stages.values() for link, id in stage.get("artifacts", {}).items()},
    )


def _share(done: object, total: object) -> float:
    """0 to 1; 0 where nothing is known."""
    if not isinstance(done, int | float) or not isinstance(total, int | float) or not 0 <= done <= total or total <= 0:
        return 0.0
    return done / total


def _is_cell(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("hash"), str)
        and isinstance(value.get("axes"), dict)
        and isinstance(value.get("overrides"), list)
    )


def _is_job(value: object) -> bool:
    if not isinstance(value, dict) or not {"launcher", "handle", "folders", "needs", "over"} <= value.keys():
        return False
    lists = [value["folders"], value["needs"]]
    return (
        isinstance(value["launcher"], str)
        and (value["handle"] is None or isinstance(value["handle"], str))
        and isinstance(value["over"], bool)
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
    )
