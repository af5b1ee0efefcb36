"""benchmarks/evaluation.py: its figures by hand, and (slow) one run of it on the tiny model."""

import importlib.util
import json
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "evaluation.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluation_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(seconds: float, cpu: float, scores: list[float], generated: list[list[int]]) -> dict[str, Any]:
    return {
        "seconds": seconds, "cpu_seconds": cpu, "parts": {"load": 1.0, "rest": cpu - 1}, "rows": {"pairs": [2, 9]},
        "prompts": [[1], [2]], "generated": generated, "scores": scores,
        "work": {"decoded": [3, 6]},
    }  # fmt: skip


def test_figures_by_hand(bench: ModuleType) -> None:
    """Ratios 0.5, 0.25 and 0.75 of the rounds; one generation of two is the same; scores differ by 0.5 at most."""
    theirs = [run(10, 8, [-1.0, -2.0], [[4], [5]]), run(8, 8, [0.0], [[4]]), run(4, 8, [0.0], [[4]])]
    mine = [run(5, 4, [-1.5, -2.25], [[4], [6]]), run(2, 6, [0.0], [[4]]), run(3, 2, [0.0], [[4]])]
    plain = [{"seconds": 1, "cpu_seconds": 2, "products": 1.5}] * 3
    rounds = [{"earlier": a, "ours": b, "generate": c} for a, b, c in zip(theirs, mine, plain, strict=True)]
    found = bench.line(rounds)
    assert [found[name] for name in ("rounds", "rows", "num_prompts")] == [3, {"pairs": [2, 9]}, 2]
    assert found["earlier"] == {
        "seconds": 8, "cpu_seconds": 8, "parts": {"load": 1.0, "rest": 7}, "ratio": 0.5, "ratio_range": [0.25, 0.75],
        "ratio_cpu": 0.5, "ratio_cpu_range": [0.25, 0.75], "same_generations": 0.5, "score_difference": 0.5,
    }  # fmt: skip
    own = {"parts": {"load": 1.0, "rest": 3}, "work": {"decoded": [3, 6]}}
    assert found["ours"] == {"seconds": 3, "cpu_seconds": 4, **own}
    assert (
        found["generate"]["products"] == 1.5 and found["generate"]["ratio"] == 3 and found["generate"]["ratio_cpu"] == 2
    )
    assert "earlier" not in bench.line([{"ours": mine[0], "generate": plain[0]}])


@pytest.mark.slow
def test_one_line(tmp_path: Path) -> None:
    """This checkout beside itself: the same numbers."""
    command = [sys.executable, str(FILE), "--tiny", "--dtype", "float32", "--num-prompts", "2", "--num-ppl", "2"]
    command += ["--num-calibration", "2", "--max-new-tokens", "5"]
    done = subprocess.run(
        [*command, "--earlier", str(FILE.parents[1])], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    (found,) = map(json.loads, done.stdout.splitlines())
    assert found["num_prompts"] == 8 and found["rows"]["pairs"][0] == 16
    assert found["earlier"]["same_generations"] == 1.0 and found["earlier"]["score_difference"] == 0.0
    # each prompt that is asked gets at least one token in the pass that reads it
    assert found["ours"]["work"]["decoded"][1] <= 8 * 4 and found["generate"]["products"] > 0
    wrong = subprocess.run([*command, "--model", "x"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "need either --tiny" in wrong.stderr


def test_products_by_hand(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second a call: 20 tokens read 10 at a time by one layer, 512 scored 256 at a time, 3 steps of both layers."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 4)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    ticks = count()
    monkeypatch.setattr(bench.time, "process_time", lambda: float(next(ticks)))
    work = {"read": [1, 20], "scored": [512], "decoded": [3, 6]}
    assert bench.products(Model(), work, budget=10) == 2 + 2 + 3 * 2
