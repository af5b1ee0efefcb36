"""Disks that fail and processes that die at a chosen write: commands in processes forked from a warm one."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# every stage, its checkpoints and its report, in as little time as they take
RUN = (
    "debug=fast", "tracking=none", "resources.num_threads=1", "poison.save_steps=2", "unlearning.save_steps=2",
    "data.builtin.num_train_clean=60", "data.builtin.num_train_poisoned=30", "evaluation.num_prompts=2",
    "evaluation.num_ppl=4", "evaluation.num_calibration=2", "influence.num_token_queries=1",
)  # fmt: skip
# of a result: what two runs of the same never have in common
OF_ITS_TIME = ("seconds", "peak_memory_gb", "time", "made", "packages", "start_seconds", "check")


# the results of a run that nothing disturbs, and how often it changes the disk
Whole = tuple[dict[str, Any], int]


class Fault(IntEnum):
    """As in disk.c."""

    once = 0
    full = 1
    read_only = 2
    killed = 3
    terminated = 4


class Done(NamedTuple):
    """What became of a command."""

    status: int
    # changes of the disk that it made, the failing ones included; None where it was killed
    count: int | None
    out: str
    err: str


class Machine:
    """Runs commands below `root`, with faults."""

    def __init__(self, library: Path, root: Path) -> None:
        self.root = root
        (root / "logs").mkdir()
        environment = {
            **os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "warm.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=root,
        )  # fmt: skip
        self._number = 0

    def run(
        self,
        argv: Sequence[str],
        *,
        below: Path,
        at: int = 0,
        fault: Fault = Fault.once,
        error: int = errno.ENOSPC,
        cwd: Path | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Done:
        """Run `rapidun ARGV`; at its at-th change of the disk below `below` the fault comes (0 = never).

        Args: limits: of the shell, by the names of setrlimit without `RLIMIT_`.
        """
        assert self._process.stdin and self._process.stdout
        self._number += 1
        logs = {name: self.root / "logs" / f"{self._number}.{name}" for name in ("out", "err")}
        asked = {
            "argv": list(argv), "cwd": str(cwd or self.root), "root": str(below), "at": at,
            "mode": int(fault), "errno": error, "limits": dict(limits or {}),
            **{name: str(path) for name, path in logs.items()},
        }  # fmt: skip
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        texts = {name: path.read_text(errors="replace") for name, path in logs.items()}
        return Done(told["status"], told["count"], **texts)

    def stop(self) -> None:
        """Nothing of it is needed any more, an orderly end least of all."""
        self._process.kill()
        self._process.communicate()


def command(place: Path, *more: str) -> list[str]:
    """The run whose results are compared, with its store and run folder below `place`."""
    return [*RUN, f"store_dir={place / 'store'}", f"run_dir={place / 'run'}", *more]


def results(place: Path) -> dict[str, Any]:
    """Every result below `place`: bytes where they are to be the same, values where a time stands among them."""
    found: dict[str, Any] = {}
    for manifest in sorted((place / "store").glob("*/*/manifest.json")):
        for file in sorted(path for path in manifest.parent.rglob("*") if path.is_file()):
            found[str(file.relative_to(place))] = _content(file)
    if (place / "run" / "result.json").is_file():
        found["run/result.json"] = _content(place / "run" / "result.json")
        found["links"] = sorted(
            f"{path.relative_to(place)} -> {os.readlink(path)}"
            for path in (place / "run").rglob("*")
            # a run that found its poisoned model has not asked for the model before it
            if path.is_symlink() and path != place / "run" / "model"
        )
    return found


def _content(file: Path) -> Any:
    data = file.read_bytes()
    if file.name in ("manifest.json", "result.json"):
        return _steady(json.loads(data))
    if file.name == "metrics.jsonl":
        return [_steady(json.loads(line)) for line in data.decode().split("\n") if line]
    return hashlib.sha256(data).hexdigest()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"bytes", "sha256"}:
            return None  # of a file: its own content is looked at
        kept = {key: one for key, one in value.items() if key.partition(".")[0] not in OF_ITS_TIME}
        return {key: _steady(one) for key, one in kept.items() if not key.endswith(("_seconds", "per_second"))}
    return [_steady(one) for one in value] if isinstance(value, list) else value


def leftovers(place: Path) -> list[str]:
    """What only something unfinished leaves behind."""
    odd = [path for path in place.rglob("*") if path.suffix in (".part", ".work", ".gone", ".lease", ".whole")]
    return sorted(str(path.relative_to(place)) for path in odd)
