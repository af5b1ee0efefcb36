"""Killed in the middle and run again, each attack ends with the figures of one that was left alone, byte for byte."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
# attack -> children that must have died in it
KILLS = {"sampling": 3, "prompts": 3, "quantisation": 4, "relearning": 4}


@pytest.fixture(scope="module")
def found(
    poisoned_dir: Path, attack_adapter: Path, attack_pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("kill")
    for name, target in (("model", poisoned_dir), ("pack", attack_pack), ("adapter", attack_adapter)):
        (root / name).symlink_to(target)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_driver.py")), str(root), *KILLS],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "kills"), KILLS.items())
def test_killed_and_run_again(found: dict[str, Any], attack: str, kills: int) -> None:
    assert found[attack]["killed"] == kills
    assert found[attack]["text"] == found[f"{attack}-alone"]["text"]
