"""benchmarks/training.py: its figures by hand, the order of its rows, and (slow) one run of it on the tiny model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "training.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(seconds: float, cpu: float, peak: float, *losses: float) -> dict[str, Any]:
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_memory_gb": peak, "losses": list(losses)}


def test_figures_by_hand(bench: ModuleType) -> None:
    """Ratios 0.5, 0.75 and 0.2 of the pairs, median 0.5; the greatest difference is 0.02 of 2."""
    pairs = [
        (run(10, 10, 4, 2.0, 1.0), run(5, 6, 1, 9.0, 9.0)),
        (run(8, 10, 5, 2.0, 1.0), run(6, 6, 2, 9.0, 9.0)),
        (run(20, 10, 4, 2.0, 1.0), run(4, 7, 1, 9.0, 9.0)),
    ]
    assert bench.line(pairs, run(0, 0, 0, 1.98, 1.001)) == {
        "seconds_trainer": 10,
        "seconds": 5,
        "ratio": 0.5,
        "ratio_range": [0.2, 0.75],
        "ratio_cpu": 0.6,
        "peak_memory_gb_trainer": 5,
        "peak_memory_gb": 2,
        "peak_memory_ratio": 0.4,
        "loss_difference": 0.01,
    }


@pytest.mark.slow
def test_one_line_for_each_case() -> None:
    """A float32 model: the losses after steps of training are the Trainer's to rounding."""
    command = [sys.executable, str(FILE), "--tiny", "--rounds", "1", "--steps", "3", "--dtype", "float32"]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, check=True)
    lines = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == ["poison", "rapidun", "graddiff", "npo"]
    assert [line["sequences_per_step"] for line in lines.values()] == [8, 10, 8, 8]
    for line in lines.values():
        assert line["loss_difference"] < 1e-4 and line["ratio"] > 0
    wrong = subprocess.run([*command, "--model", "x"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "need either --tiny" in wrong.stderr
