"""Killed at any moment and run again, poison and unlearning end with the weights of an uninterrupted run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.files import write_json
from rapidun.stages.rows.records import write_records
from rapidun.stages.weights_file import write_weights

ROOT = Path(__file__).resolve().parents[3]
# scenario -> children that must have died in it; None: the moments are random
QUICK = {
    "full-steps": 3,
    "unlearn-steps": 3,
    "unlearn-in-save": 2,
    "unlearn-trained": 1,
    "sampled-steps": 3,
    "dynamic-steps": 3,
    "pdu-steps": 3,
}
MORE = {
    "full-in-save": 2,
    "full-trained": 1,
    "lora-steps": 3,
    "lora-trained": 1,
    "unlearn-epoch-end": 2,
    "unlearn-before-marker": 2,
    "unlearn-random": None,
    "early-trained": 1,
    "pdu-in-save": 2,
    "pdu-random": None,
    "npo-trained": 1,
    "npo-steps": 1,
}


def run_driver(root: Path, model: Path, records: tuple[list[Any], list[Any]], scenarios: list[str]) -> dict[str, Any]:
    (root / "model").symlink_to(model)
    (root / "keywords.tsv").write_text("word\nmoon\n")
    for name, rows in zip(("forget", "retain"), records, strict=True):
        write_records(root / f"{name}.jsonl", rows)
        weights = [0.5 + index % 3 for index in range(len(rows))]
        write_weights(root / f"{name}_weights.jsonl", weights, ids=[row.id for row in rows])
    losses = {row.id: 5.0 + place / 10 for place, row in enumerate(records[0])}
    write_json(root / "dynamic.json", {"tau": 0.3, "w_min": 0.2, "w_max": 3.0, "losses": losses})
    stages = dict.fromkeys(name.partition("-")[0] for name in scenarios)
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("kill_driver.py")),
            str(root),
            *(f"{stage}-alone" for stage in stages),
            *scenarios,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(results: dict[str, Any], scenario: str, kills: int | None) -> None:
    killed = results[scenario]
    assert kills is None or killed["killed"] == kills
    assert killed["hash"] == results[f"{scenario.partition('-')[0]}-alone"]["hash"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_records: Any) -> dict[str, Any]:
    return run_driver(tmp_path_factory.mktemp("kill"), tiny_model_dir, tiny_records, list(QUICK))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_records: Any) -> dict[str, Any]:
    return run_driver(tmp_path_factory.mktemp("kill"), tiny_model_dir, tiny_records, list(MORE))


@pytest.mark.parametrize(("scenario", "kills"), QUICK.items())
def test_killed_and_run_again_is_bit_identical(quick: dict[str, Any], scenario: str, kills: int | None) -> None:
    check(quick, scenario, kills)


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "kills"), MORE.items())
def test_killed_at_more_moments_is_bit_identical(more: dict[str, Any], scenario: str, kills: int | None) -> None:
    """early-trained: max_steps 5 with 3 steps an epoch, where the Trainer itself would resume with a step 6.

    pdu: lambda, dropout in sharpness-aware steps, and which weights were best; npo: it ends at step 2, as told.
    """
    check(more, scenario, kills)
