"""The benchmark's figures by hand, and (slow) one run of it on the tiny model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rapidun.stages.influence.batches import RowBatch

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "influence.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("influence_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def test_a_line_holds_the_fidelity(bench):
    """Errors +0.1, -0.1, 0 on the three pairs: variance 0.01, effective K 100. The ranks agree."""
    truth = torch.tensor([[1, 0.1, 0.5], [0.1, 1, 0.9], [0.5, 0.9, 1]], dtype=torch.float64)
    error = torch.tensor([[0, 0.1, -0.1], [0.1, 0, 0], [-0.1, 0, 0]], dtype=torch.float64)
    same = {"spearman": 1.0, "spearman_query": 1.0, "top_10": 1.0}
    found = bench.held_against(truth + error, truth, is_estimate=True)
    assert found == {**same, "cosine_error_sd": 0.1, "effective_k": 100}
    assert bench.held_against(truth, truth, is_estimate=False) == same


def test_rows_alone_lose_their_padding(bench):
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    batch = RowBatch([7, 2], {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids})
    alone = bench.one_row_each([batch])
    assert [b.rows for b in alone] == [[7], [2]]
    assert [b.tensors["input_ids"].tolist() for b in alone] == [[[1, 2, 3]], [[4, 5]]]


@pytest.mark.slow
def test_one_line_for_each_mode():
    command = [sys.executable, str(FILE), "--tiny", "--rows", "8", "--rounds", "1", "--k", "4096"]
    done = subprocess.run(
        [*command, "--modes", "tensorsketch_512", "sketch", "bm25"], capture_output=True, text=True, check=True
    )
    lines = {line["mode"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == ["lora_step", "full_step", "exact", "tensorsketch_512", "sketch", "bm25"]
    sketch = lines["sketch"]
    assert (sketch["numbers_per_row"], sketch["bytes_per_row"], sketch["num_rows"]) == (4096, 16384, 8)
    assert 0 < sketch["cosine_error_sd"] < 0.1 and sketch["ratio_f0"] > 0
    wrong = subprocess.run([*command, "--modes", "nothing"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "need modes among" in wrong.stderr
