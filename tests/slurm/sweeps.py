"""Real sweeps on a real SLURM: `python sweep.py -m ...` and `rapidun sweep ...` as processes, and what they leave."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# a process takes 0.5 GiB; its part of the test cluster's node is 2
SETTINGS = [
    "debug=fast",
    "hydra/launcher=rapidun_slurm",
    "resources.num_threads=1",
    "resources.timeout_min=20",
    "sweep.name=grid",
]
# What is waited for ends by itself; this long only what hangs is waited for, however busy the machine is.
PATIENCE_S = 900.0
STAGES = ("data", "poison", "influence", "mapping", "unlearning", "evaluation")


class Sweeping:
    """A directory to launch a sweep from, and the sweep `grid` in it."""

    def __init__(self, start: Path, *overrides: str, environment: dict[str, str] | None = None) -> None:
        self.start = start
        self.overrides = [*SETTINGS, *overrides]
        self.environment = os.environ | {"COLUMNS": "160"} | (environment or {})
        self.dir = start / "outputs" / "sweeps" / "grid"
        self.store = start / "outputs" / "store"

    def spawn(self, *more: str, **environment: str) -> "subprocess.Popen[str]":
        """Start the sweep's own command and leave it running."""
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "sweep.py"), "-m", *self.overrides, *more],
            cwd=self.start,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *more: str, expect: int = 0, timeout_s: float = PATIENCE_S) -> str:
        """The sweep's own command; what it printed."""
        process = self.spawn(*more)
        return finished(process, expect=expect, timeout_s=timeout_s)

    def command(
        self, *args: str, cwd: Path | None = None, expect: int | None = 0, timeout_s: float = PATIENCE_S
    ) -> str:
        """`rapidun sweep ARGS`; the folder is named from `cwd`."""
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "sweep.py"), "sweep", *args],
            cwd=cwd or self.start,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return finished(process, expect=expect, timeout_s=timeout_s)

    def json(self, name: str) -> dict:
        return json.loads((self.dir / name).read_text())

    @property
    def cells(self) -> list[str]:
        return [cell["hash"] for cell in self.json("sweep.json")["cells"]]

    @property
    def handles(self) -> dict[str, str | None]:
        """Job id -> SLURM's id, of every launch."""
        path = self.dir / "jobs.json"
        return {id: job["handle"] for id, job in json.loads(path.read_text()).items()} if path.is_file() else {}

    def statuses(self) -> dict[str, dict]:
        """Run folder -> its status.json, those of shared results too."""
        found = [*self.dir.glob("*/status.json"), *self.dir.glob("stages/*/status.json")]
        return {str(path.parent.relative_to(self.dir)): json.loads(path.read_text()) for path in found}

    def states(self) -> Counter:
        """How many cells are in which state."""
        statuses = self.statuses()
        return Counter(statuses[cell]["state"] if cell in statuses else "waiting" for cell in self.cells)

    def logs(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.dir.glob("jobs/slurm/*_log.out"))}

    # What was made, told three ways

    def manifests(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self.store.glob("*/*/manifest.json")]

    def planned(self) -> set[str]:
        """The distinct fingerprints that the cells' run folders link to; the scratch model is not among them."""
        cells = self.json("sweep.json")["cells"]
        return {id for cell in cells for id in cell["artifacts"].values()}

    def executions(self) -> Counter:
        """stage -> how often it ran, by what the run folders' status.json say they did not reuse."""
        return Counter(
            stage
            for status in self.statuses().values()
            for stage, entry in status["stages"].items()
            if not entry["cached"]
        )

    def logged_executions(self) -> Counter:
        """stage -> how often it ran to its end, by what the jobs of all launches printed."""
        text = "\n".join(self.logs().values())
        return Counter(re.findall(rf"^({'|'.join(STAGES)}) +done ", text, flags=re.MULTILINE))

    def assert_each_made_once(self) -> Counter:
        """Everything planned is in the store, nothing else is, and no stage ran more often than it has results.

        The data are made while planning, the scratch model on the way to the poisoned one: neither has a line.
        """
        made = Counter(manifest["stage"] for manifest in self.manifests())
        ids = {f"{manifest['stage']}/{manifest['fingerprint']}" for manifest in self.manifests()}
        assert ids >= self.planned()
        assert {id for id in ids if not id.startswith("model/")} == self.planned()
        expected = Counter({stage: number for stage, number in made.items() if stage not in ("data", "model")})
        assert self.executions() == expected
        assert self.logged_executions() == expected
        assert made["data"] == made["model"] == 1
        # nothing was begun and thrown away, or is still being written
        assert not [*self.store.glob("*/*.part"), *self.store.glob("*/*.gone")]
        waiting = {name: text for name, text in self.logs().items() if "waiting for" in text}
        assert not waiting
        return made

    def cancel(self) -> None:
        """Stop whatever a failed test left."""
        for handle in self.handles.values():
            if handle:
                subprocess.run(["scancel", handle], env=self.environment, check=False, capture_output=True)

    def tell(self) -> str:
        """For the message of a test that waited in vain."""
        ends = "\n".join(f"== {name}\n{text[-1500:]}" for name, text in self.logs().items())
        return f"{self.states()}\n{ends}"


def finished(process: "subprocess.Popen[str]", *, expect: int | None, timeout_s: float = PATIENCE_S) -> str:
    """Wait for a process and compare its exit status, unless `expect` is None; what it printed."""
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        raise AssertionError(f"still running after {timeout_s:g} s:\n{printed}") from None
    assert expect is None or process.returncode == expect, f"exit status {process.returncode}, not {expect}:\n{printed}"
    return printed


def wait_until(
    condition: Callable[[], object], *, timeout_s: float = PATIENCE_S, tell: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout_s:g} s in vain\n{tell()}")
