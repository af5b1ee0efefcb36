"""Sweeps as a user starts them, for the tests of this folder and of tests/slurm: one command in a process of its own.

Its session is its own too, as under a terminal: `interrupt` reaches the process and what it started, and nothing else.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
# every stage but the evaluation, in a second or two
FAST = ["debug=fast", "stages=[data,poison,influence,mapping,unlearning]", "resources.num_threads=1"]


class Grid:
    """One sweep folder below `cwd`, and the command that fills it."""

    def __init__(self, cwd: Path, *overrides: str, launcher: str = "basic", name: str = "grid") -> None:
        self.cwd = cwd
        self.path = cwd / "outputs" / "sweeps" / name
        self.overrides = [*overrides, f"sweep.name={name}", f"hydra/launcher={launcher}"]

    # Commands

    def start(self, *more: str) -> "subprocess.Popen[str]":
        return self._popen(str(ROOT / "sweep.py"), "-m", *self.overrides, *more)

    def run(self, *more: str, timeout_s: float = 900.0) -> tuple[int, str]:
        """The whole command: exit status and what stood on the screen."""
        with self.start(*more) as process:
            return end_of(process, timeout_s=timeout_s)

    def command(self, action: str, *more: str) -> tuple[int, str]:
        """`rapidun sweep ACTION DIR`."""
        code = "import sys; from rapidun.cli.main import main; sys.exit(main())"
        with self._popen("-c", code, "sweep", action, str(self.path), *more) as process:
            return end_of(process, timeout_s=900.0)

    def _popen(self, *argv: str) -> "subprocess.Popen[str]":
        self.cwd.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, *argv], cwd=self.cwd, env=environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    # Files

    def cells(self) -> dict[str, str]:
        """`seed=1 mapping.tau_f=0.3` -> hash, in the order of the grid."""
        found = {}
        for cell in json.loads((self.path / "sweep.json").read_text())["cells"]:
            found[" ".join(f"{key}={value}" for key, value in cell["axes"].items())] = cell["hash"]
        return found

    def status(self, folder: str) -> dict[str, Any]:
        """A run folder's status.json: whole JSON at any moment; empty before the first."""
        path = self.path / folder / "status.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def states(self) -> dict[str, str]:
        """Cell -> its state, with the first line of its error where it failed."""
        found = {}
        for name, hash in self.cells().items():
            status = self.status(hash)
            error = (status.get("error") or {}).get("message", "").split("\n")[0]
            state = status.get("state", "waiting")
            found[name] = f"failed: {error}" if state == "failed" else state
        return found

    def stages(self) -> dict[str, dict[str, Any]]:
        """Folder name -> status.json of what several cells share."""
        return {p.parent.name: json.loads(p.read_text()) for p in sorted(self.path.glob("stages/*/status.json"))}

    def made(self) -> dict[str, str]:
        """Artifact -> when it was made, of all manifests in the store."""
        found = {}
        for path in sorted((self.cwd / "outputs" / "store").glob("*/*/manifest.json")):
            found[f"{path.parent.parent.name}/{path.parent.name}"] = str(path.stat().st_mtime_ns)
        return found

    def whole(self) -> None:
        """Every JSON file of sweep and store can be read; nobody left a `.part`."""
        for path in [*self.path.rglob("*.json"), *(self.cwd / "outputs" / "store").glob("*/*/*.json")]:
            json.loads(path.read_text())


def end_of(process: "subprocess.Popen[str]", *, timeout_s: float) -> tuple[int, str]:
    """Wait for a command; past the limit it is killed and the test fails with what it printed."""
    try:
        out, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        raise AssertionError(f"not done after {timeout_s:g} s:\n{out}") from None
    return process.returncode, out


def patience(seconds: float) -> float:
    """So long on a machine that is not overloaded; longer where each process gets only a part of a core."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Ctrl-C in the terminal where the command runs."""
    os.killpg(process.pid, signal.SIGINT)


def wait_until(condition: Callable[[], object], *, timeout_s: float = 900.0, process: Any = None) -> None:
    """Raises: AssertionError with the process's output if it ends first, or nothing happens in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            if process is not None and not ended:
                os.killpg(process.pid, signal.SIGKILL)
            out = process.communicate()[0] if process is not None else ""
            raise AssertionError(f"{'ended' if ended else 'waited in vain'}:\n{out}")
        time.sleep(0.02)


def children_of(cwd: Path) -> list[int]:
    """Processes that work in this folder, whoever started them; the dead that nobody collected yet do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(cwd):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
