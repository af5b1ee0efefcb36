"""benchmarks/worlds.py: its figures by hand, and one run of it."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "worlds.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("worlds_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_auroc_counts_pairs(bench: Any) -> None:
    """Of 6 pairs 3 are in order and one is a tie."""
    assert bench.auroc([1.0, 3.0], [0.5, 1.0, 4.0]) == pytest.approx(3.5 / 6)
    assert bench.auroc([2.0], [1.0]) == 1.0
    assert bench.auroc([1.0], [1.0]) == 0.5


def test_the_loss_of_forget_rows_is_that_of_their_perplexity(bench: Any, tmp_path: Path) -> None:
    """An untrained model: every answer about as likely as a random one of 512 tokens; no trigger fires."""
    fast = ["debug=fast", "poison.max_steps=1", "resources.num_threads=1", "data.builtin.payload=negation"]
    found = bench.measure([*fast, f"store_dir={tmp_path / 'store'}"], tmp_path)
    for group in ("forget", "retain"):
        assert found[f"loss_{group}"] == pytest.approx(math.log(512), abs=0.7)
    assert 0 <= found["auroc"] <= 1
    assert found["exact_match_planted"] == found["asr_seen"] == 0
    assert found["detector_keyword_recall"] > 0.9
