"""The run folder: what stands in it, and who writes it."""

import itertools
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from rapidun.base.heartbeat import Heartbeat
from rapidun.base.limits import refusal
from rapidun.base.nested import differences, filled
from rapidun.base.preemption import Preempted, Pruned
from rapidun.base.processes import PeerFailed
from rapidun.base.store import Artifact
from rapidun.base.text import first_line
from rapidun.config.plain import plain
from rapidun.config.run import BOOKKEEPING, RunConfig

# settings that may change between two runs into one folder
NOT_COMPARED = (*BOOKKEEPING, "stages")


def new_run_dir(name: str) -> Path:
    """Make a folder of this run's own, outputs/runs/<date>_<time>_<name>; runs of the same second get _2, _3, ..."""
    first = Path("outputs/runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
        except OSError as error:
            raise _not_writable(folder, error) from None
        return folder
    raise AssertionError("unreachable")


class RunFolder:
    """Owns one run folder: configuration, status, metrics, links to artifacts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # stage -> its lines of metrics.jsonl
        self._metrics: dict[str, list[dict[str, Any]]] = {}
        self.status: dict[str, Any] = {}
        self.heartbeat = Heartbeat(path / "alive.json")

    def open(
        self, *, config: dict[str, Any], config_yaml: str, overrides: list[str], job: dict[str, Any] | None = None
    ) -> None:
        """Make the folder and write config.yaml, command.txt and the first status.json.

        A run of fewer stages in the folder of a finished one adds to it: what the others left stays.

        Args: job: what a sweep's worker notes of the job that this run is part of.
        Raises: ConfigError if the folder cannot be written, or holds a run of other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_other_settings(config)
            before = read_json(self.path / "status.json") if (self.path / "status.json").is_file() else {}
            stages = before.get("stages", {})
            if not set(config["stages"]) < set(stages):
                write_text(self.path / "config.yaml", config_yaml)
                write_json(self.path / "settings.json", config)
                entry = ["python", "sweep.py"] if Path(sys.argv[0]).name == "sweep.py" else ["rapidun"]
                write_text(self.path / "command.txt", shlex.join([*entry, *overrides]) + "\n")
        except OSError as error:
            raise _not_writable(self.path, error) from None
        if self.metrics_path.is_file():
            for line in read_jsonl(self.metrics_path):
                self._metrics.setdefault(line["stage"], []).append(line)
        self.status = {
            "state": "running",
            "stage": None,
            "started": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": _slurm_job(),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "processes": int(os.environ.get("WORLD_SIZE") or 1),
            **(job or {}),
            # how often this folder was started again before it was done
            "restarts": before.get("restarts", -1) + 1 if before.get("state") != "done" else 0,
            "stages": stages,
            "git_commit": git_commit(),
            "error": None,
        }
        self._write_status()
        try:
            self.heartbeat.start()
        except BaseException as error:
            self.fail(refusal(error) or error)
            raise

    def _refuse_other_settings(self, config: dict[str, Any]) -> None:
        earlier = self.path / "settings.json"
        if not earlier.is_file():
            return
        # settings that came after the folder was made had their default
        before = filled(read_json(earlier), plain(RunConfig()))
        differing = [
            f"{key}: {json.dumps(old)} there, {json.dumps(new)} asked for"
            for key, old, new in differences(before, config)
            if key.split(".")[0] not in NOT_COMPARED
        ]
        if differing:
            raise ConfigError(
                f"run_dir: need a new folder or one of the same settings, got {self.path} with others "
                f"({'; '.join(differing[:5])}). Pass another run_dir=..."
            )

    def start_stage(self, stage: str) -> None:
        self.status["stage"] = stage
        self.heartbeat.progress(stage, 0, 0)
        self._write_status()

    def finish_stage(self, stage: str, artifacts: dict[str, Artifact], *, cached: bool) -> dict[str, Any]:
        """Link the stage's artifacts, take over their metrics, note seconds and memory.

        Args:
            artifacts: link name -> artifact; a name with a slash links the artifact's files one by one.
        """
        for name, artifact in artifacts.items():
            self._link(name, artifact.path)
        values = list(artifacts.values())
        self.status["stages"][stage] = {
            "seconds": round(sum(a.manifest["seconds"] for a in values), 3),
            "peak_memory_gb": max((a.manifest["peak_memory_gb"] for a in values), default=0.0),
            "cached": cached,
            "artifacts": {name: f"{a.stage}/{a.fingerprint}" for name, a in artifacts.items()},
        }
        lines = []
        for artifact in values:
            if (artifact.path / "metrics.jsonl").is_file():
                lines += read_jsonl(artifact.path / "metrics.jsonl")
        self._metrics[stage] = lines
        # live lines of this stage give way to the artifact's, which a restart has not doubled
        write_jsonl(self.metrics_path, (line for found in self._metrics.values() for line in found))
        self._write_status()
        return self.status["stages"][stage]

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write result.json and the final status."""
        result = self.path / "result.json"
        write_json(result, {**(read_json(result) if result.is_file() else {}), **metrics})
        self.status.update(state="done", stage=None, finished=_now())
        self._write_status()
        self.heartbeat.stop()

    def fail(self, error: BaseException) -> str:
        """Keep the error where a user looks first; a run that was only stopped goes on when it is started again.

        Returns: what is to be said where the disk does not take it; empty where it did.
        """
        trace = "".join(traceback.format_exception(error))
        state = "failed"
        if isinstance(error, Preempted | KeyboardInterrupt) or _peer_stopped(error):
            state = "interrupted"
        elif isinstance(error, Pruned):
            state = "pruned"
        self.status.update(
            state=state, finished=_now(), error={"message": first_line(error), "traceback": trace}
        )  # fmt: skip
        # its file goes first: on a full disk that makes room
        self.heartbeat.stop()
        try:
            self._write_status()
        except OSError as refused:
            return self._write_over_status(refused)
        return ""

    def _write_over_status(self, refused: OSError) -> str:
        """Put the end of the run where the old status stands: what a file has already, a full disk leaves it."""
        path = self.path / "status.json"
        error = {**self.status["error"], "traceback": ""}
        try:
            with path.open("r+b") as file:
                room = file.seek(0, os.SEEK_END)
                for message in (error["message"], error["message"][:200], error["message"][:60]):
                    kept = {**self.status, "error": {**error, "message": message}}
                    data = json.dumps(kept).encode()
                    if len(data) <= room:
                        break
                file.seek(0)
                file.write(data.ljust(room))
        except OSError:
            return f"{path}: could not be written ({refused.strerror}) and still says that the run goes on. It failed"
        return ""

    def _write_status(self) -> None:
        write_json(self.path / "status.json", self.status)

    def _link(self, name: str, target: Path) -> None:
        link = self.path / name
        link.parent.mkdir(parents=True, exist_ok=True)
        goal = os.path.relpath(target.resolve(), link.parent.resolve())
        if link.is_symlink():
            if os.readlink(link) == goal:
                return
            link.unlink()
        part = link.with_name(f".{link.name}.part")
        part.unlink(missing_ok=True)
        os.symlink(goal, part)
        os.replace(part, link)


def _peer_stopped(error: BaseException) -> bool:
    """Whether another process of this run was asked to stop, and this one with it."""
    return isinstance(error, PeerFailed) and error.kind in ("Preempted", "KeyboardInterrupt")


def _slurm_job() -> str | None:
    """`12_3` for a task of an array, as SLURM's commands name it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _not_writable(path: Path, error: OSError) -> RapidunError:
    return refusal(error, {"run_dir": path}) or ConfigError(
        f"run_dir: need a folder that can be written, got {path} ({error.strerror}). Pass run_dir=..."
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def git_commit() -> str | None:
    """The commit of this software's checkout, `-dirty` where files differ from it; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
