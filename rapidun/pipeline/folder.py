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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError, ConfigError, RapidunError
from rapidun.base.files import link_to, read_json, read_jsonl, write_json, write_jsonl, write_text
from rapidun.base.grown import mend
from rapidun.base.heartbeat import Heartbeat
from rapidun.base.limits import refusal
from rapidun.base.locks import Lease, take_folder
from rapidun.base.manifest import Artifact
from rapidun.base.nested import at, differences, filled, is_number
from rapidun.base.parts import sweep_parts
from rapidun.base.preemption import Preempted, Pruned
from rapidun.base.processes import PeerFailed
from rapidun.base.redact import HIDDEN, hide, hide_entries
from rapidun.base.text import first_line
from rapidun.config import extensions
from rapidun.config.plain import as_yaml, plain
from rapidun.config.run import BOOKKEEPING, STAGES, RunConfig
from rapidun.pipeline.hidden import note_hidden, other_hidden
from rapidun.pipeline.tracking.lines import KEYS, read_lines
from rapidun.report.read import read_object

# settings that may change between two runs into one folder
NOT_COMPARED = (*BOOKKEEPING, "stages")
NO_VIEWS: Mapping[str, Callable[[Path, Path], None]] = {}


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


class FolderTaken(RuntimeError):
    """This process was suspended, and another one has taken its run folder over."""


class RunFolder:
    """Owns one run folder: configuration, status, metrics, links to artifacts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # stage -> its lines of metrics.jsonl
        self._metrics: dict[str, list[dict[str, Any]]] = {}
        self.status: dict[str, Any] = {}
        self.heartbeat = Heartbeat(path / "alive.json")
        self.lease: Lease | None = None

    def open(
        self,
        *,
        config: dict[str, Any],
        config_yaml: str,
        overrides: list[str],
        job: dict[str, Any] | None = None,
        waits: bool = False,
        tell: Callable[[str], None] = lambda line: None,
        on_wait: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Make the folder and write config.yaml, command.txt and the first status.json.

        A run of fewer stages in the folder of a finished one adds to it: what the others left stays. The folder is this
        process's alone until `close`.

        Args:
            job: what a sweep's worker notes of the job that this run is part of. waits: until another process is done
                with the folder. tell: gets a line for each file that was damaged; on_wait: for a wait.
        Raises: ConfigError if the folder cannot be written, holds a run of other settings, or another process works in
            it; nothing is changed then.
        """
        # others read run folders
        shown = hide(config)
        if shown != config:
            config_yaml = as_yaml(shown)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lease = take_folder(self.path, waits=waits, tell=on_wait)
        except OSError as error:
            raise _not_writable(self.path, error) from None
        try:
            self._open(config, shown, config_yaml, overrides, job or {}, tell)
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        config: dict[str, Any],
        shown: dict[str, Any],
        config_yaml: str,
        overrides: list[str],
        job: dict[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        try:
            self._refuse_other_settings(config, shown)
            # links lead to the store
            own = [self.path / name for name in STAGES if not (self.path / name).is_symlink()]
            sweep_parts(self.path, *own, *(folder / "adapter" for folder in own))
            before = self._own("status.json", tell)
            stages = known_stages(before)
            if not set(config["stages"]) < set(stages):
                write_text(self.path / "config.yaml", config_yaml)
                write_json(self.path / "settings.json", shown)
                note_hidden(self.path, config, shown, but=NOT_COMPARED)
                entry = ["python", "sweep.py"] if Path(sys.argv[0]).name == "sweep.py" else ["rapidun"]
                entry += [text for one in extensions.loaded_files() for text in (extensions.FLAG, str(one.path))]
                write_text(self.path / "command.txt", shlex.join([*entry, *map(hide_entries, overrides)]) + "\n")
        except OSError as error:
            raise _not_writable(self.path, error) from None
        cut = mend(self.metrics_path, *KEYS)
        if cut:
            tell(cut)
        for line in read_lines(self.metrics_path):
            self._metrics.setdefault(str(line["stage"]), []).append(line)
        self.status = {
            "state": "running",
            "stage": None,
            "started": _now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": _slurm_job(),
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "processes": int(os.environ.get("WORLD_SIZE") or 1),
            # relative paths of the settings are meant from here
            "directory": os.getcwd(),
            **job,
            # how often this folder was started again before it was done
            "restarts": restarts_of(before) + 1 if before.get("state") != "done" else 0,
            "stages": stages,
            "git_commit": git_commit(),
            # code that is not rapidun's and was at hand
            "extensions": extensions.noted([at(config, "unlearning.objective"), at(config, "mapping.method")]),
            "error": None,
        }
        self._write_status()
        try:
            self.heartbeat.start()
        except BaseException as error:
            self.fail(refusal(error) or error)
            raise

    def _refuse_other_settings(self, config: dict[str, Any], shown: dict[str, Any]) -> None:
        earlier = self.path / "settings.json"
        if not earlier.is_file():
            return
        found = read_json(earlier)
        if not isinstance(found, dict):
            raise ConfigError(
                f"run_dir: need {earlier} with the settings of this run, got JSON of another shape. Pass another "
                "run_dir=..."
            )
        # settings that came after the folder was made had their default; earlier versions hid nothing
        before = hide(filled(found, plain(RunConfig())))
        differing = [
            f"{key}: {json.dumps(old)} there, {json.dumps(new)} asked for"
            for key, old, new in differences(before, shown)
            # what is hidden there says nothing: its digest does
            if key.split(".")[0] not in NOT_COMPARED and HIDDEN not in str(old)
        ]
        differing += [f"{key}: another value there, which is hidden" for key in other_hidden(self.path, config)]
        if differing:
            raise ConfigError(
                f"run_dir: need a new folder or one of the same settings, got {self.path} with others "
                f"({'; '.join(differing[:5])}). Pass another run_dir=..."
            )

    def start_stage(self, stage: str) -> None:
        self.status["stage"] = stage
        self.heartbeat.progress(stage, 0, 0)
        self._write_status()

    def finish_stage(
        self,
        stage: str,
        artifacts: dict[str, Artifact],
        *,
        cached: bool,
        views: Mapping[str, Callable[[Path, Path], None]] = NO_VIEWS,
    ) -> dict[str, Any]:
        """Link the stage's artifacts, take over their metrics, note seconds and memory.

        Args:
            artifacts: link name -> artifact. views: link name -> what puts another thing than a link there, given its
                path and the artifact's.
        """
        for name, artifact in artifacts.items():
            link = self.path / name
            link.parent.mkdir(parents=True, exist_ok=True)
            views.get(name, link_to)(link, artifact.path)
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

    def finish(self, metrics: dict[str, Any], *, tell: Callable[[str], None] = lambda line: None) -> None:
        """Write result.json and the final status."""
        write_json(self.path / "result.json", {**self._own("result.json", tell), **metrics})
        self.status.update(state="done", stage=None, finished=_now(), error=None)
        self._write_status()
        self.heartbeat.stop()

    def stopping(self, reason: str) -> None:
        """Say `interrupted` as soon as a signal asks: what saves a checkpoint first may be killed meanwhile.

        Called within a signal's handler; what comes of the run is written as ever.
        """
        if self.status.get("state") != "running":
            return
        self.status.update(state="interrupted", error={"message": f"Preempted: {reason}", "traceback": ""})
        # a full disk is told by what the run writes next
        with suppress(OSError, FolderTaken):
            self._write_status()

    def fail(self, error: BaseException) -> str:
        """Keep the error where a user looks first; a run that was only stopped goes on when it is started again.

        Returns: what is to be said where the disk does not take it; empty where it did.
        """
        trace = hide("".join(traceback.format_exception(error)))
        state = "failed"
        if isinstance(error, Preempted | KeyboardInterrupt) or _peer_stopped(error):
            state = "interrupted"
        elif isinstance(error, Pruned):
            state = "pruned"
        self.status.update(
            state=state, finished=_now(), error={"message": hide(first_line(error)), "traceback": trace}
        )  # fmt: skip
        # its file goes first: on a full disk that makes room
        self.heartbeat.stop()
        try:
            if self.is_ours():
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

    def close(self) -> None:
        """Let other processes have the folder."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None

    def _own(self, name: str, tell: Callable[[str], None]) -> dict[str, Any]:
        """What this folder's file of an earlier start says; nothing where it is damaged, which is told."""
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            return read_object(path)
        except ArtifactError as error:
            tell(f"{str(error).removesuffix('. Delete it and run again')}; written anew")
            return {}

    def is_ours(self) -> bool:
        """Whether no other process has taken the folder over, which happens to one that was suspended for long."""
        return self.lease is None or not self.lease.taken_over()

    def _write_status(self) -> None:
        if not self.is_ours():
            raise FolderTaken(f"{self.path}: another process has taken this run over and goes on with it")
        write_json(self.path / "status.json", self.status)


def restarts_of(status: dict[str, Any]) -> int:
    """How often the folder was started again so far; -1 where nothing was started."""
    found = status.get("restarts", -1)
    return int(found) if is_number(found) else -1


def known_stages(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What status.json says of each stage, as far as it has the shape that we write."""
    stages = status.get("stages")
    if not isinstance(stages, dict):
        return {}
    return {
        name: entry
        for name, entry in stages.items()
        if isinstance(entry, dict) and is_number(entry.get("seconds")) and isinstance(entry.get("artifacts"), dict)
    }


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
