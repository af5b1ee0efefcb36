"""Runs of a few log lines, driven as the pipeline does it, and W&B's own reader for what they leave."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapidun.config.run import RunConfig
from rapidun.config.tracking import TrackerKind
from rapidun.pipeline.tracking.run import RunTracker, open_tracker

FINGERPRINT = "0123456789abcdef"


@pytest.fixture(scope="session", autouse=True)
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No key, no settings of whoever runs the tests; the service that the first W&B run starts ends with them."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_"))]:
            patch.delenv(name)
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(home))
        # a port where nothing listens
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        yield
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()


def make_config(root: Path, kind: str, *, sweep: str | None = "sweep1") -> RunConfig:
    cfg = RunConfig(store_dir=str(root / "store"))
    cfg.tracking.kind = TrackerKind[kind]
    cfg.sweep.name = sweep
    return cfg


def make_cell(root: Path, name: str, *overrides: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "overrides.json").write_text(json.dumps({"task": list(overrides)}))
    return folder


def open_quietly(cfg: RunConfig, run_dir: Path, **options: Any) -> tuple[RunTracker, list[str]]:
    """The tracker, and the list that its closing lines go to."""
    notes: list[str] = []
    return open_tracker(cfg, run_dir, on_note=notes.append, **options), notes


def run_stage(
    tracker: RunTracker,
    root: Path,
    stage: str,
    *,
    steps: Sequence[int],
    fingerprint: str = FINGERPRINT,
    needs: Sequence[str] = (),
    fill: Callable[[Path], object] | None = None,
    fault: BaseException | None = None,
) -> Path:
    """One stage as artifacts.py runs it; `fault` ends it after the last step."""
    out, work = root / "store" / stage / fingerprint, root / "store" / stage / f"{fingerprint}.work"
    work.mkdir(parents=True, exist_ok=True)
    tracker.stage_started(stage, stage, fingerprint, {"settings": {"lr": 0.1}}, needs=needs)
    before = tracker.begin(stage, work / "metrics.jsonl")
    for step in steps:
        tracker.log({"loss": 1.0 / step, "grad_norm": float(step)}, step=step)
    tracker.begin(*before)
    if fault is not None:
        tracker.stage_failed(fault)
        return out
    out.mkdir(parents=True)
    if fill is not None:
        fill(out)
    manifest = {"stage": stage, "fingerprint": fingerprint, "result": {"final": {"loss": 0.25}}, "seconds": 2.0}
    (out / "manifest.json").write_text(json.dumps(manifest))
    tracker.stage_finished(stage, out, manifest)
    return out


class Read:
    """One offline run as `wandb leet inspect` reads it."""

    def __init__(self, text: str) -> None:
        self.records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        self.run = self.of("run")[0]
        self.config = self.run["config"]["update"]
        self.history = [record["item"] for record in self.of("history")]
        self.summary: dict[str, Any] = {}
        for record in self.of("summary"):
            self.summary.update(record["update"])
        self.exit_code = self.of("exit")[0].get("exit_code", 0) if self.of("exit") else None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]

    def curve(self, name: str) -> list[tuple[int, float]]:
        stage = name.partition("/")[0]
        return [(row[f"{stage}/step"], row[name]) for row in self.history if name in row and f"{stage}/step" in row]


def read_all(*folders: Path) -> dict[str, Read]:
    """Run id -> what W&B's reader says, of every offline run below the folders."""
    runs = [run for folder in folders for run in sorted(folder.rglob("offline-run-*")) if run.is_dir()]
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    readers = [subprocess.Popen([*command, str(run)], stdout=subprocess.PIPE, text=True) for run in runs]
    found = [Read(reader.communicate(timeout=60)[0]) for reader in readers]
    return {read.run["run_id"]: read for read in found}


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions of this file."""
    return SimpleNamespace(
        FINGERPRINT=FINGERPRINT,
        make_config=make_config,
        make_cell=make_cell,
        open_quietly=open_quietly,
        run_stage=run_stage,
        read_all=read_all,
    )
