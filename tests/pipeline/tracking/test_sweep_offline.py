"""A local sweep with W&B offline, from the command line to W&B's own reader."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = [
    "-m", "debug=fast", "tracking=wandb", "sweep.name=six", "resources.num_threads=1", "poison.max_steps=2",
    "evaluation.num_prompts=2", "mapping=uniform,rapidun,shuffled", "unlearning.ascent_alpha=1,1e38",
]  # fmt: skip


@pytest.mark.slow
def test_six_cells_of_which_three_fail(tools: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweep.py"), *COMMAND],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "six"
    cells = {path.parent.name: path.parent for path in folder.glob("*/overrides.json")}
    assert len(cells) == 6
    reads = tools.read_all(folder)
    assert {read.run["run_group"] for read in reads.values()} == {"six"}
    of_cells = {id.split("-")[1]: read for id, read in reads.items() if read.run["job_type"] == "cell"}
    assert of_cells.keys() == cells.keys()
    for name, read in of_cells.items():
        settings = json.loads((cells[name] / "settings.json").read_text())
        assert {key: read.config[key] for key in ("mapping", "unlearning", "seed")} == {
            key: settings[key] for key in ("mapping", "unlearning", "seed")
        }
        fails = settings["unlearning"]["ascent_alpha"] == 1e38
        assert (read.exit_code, read.summary["state"]) == ((1, "failed") if fails else (0, "done"))
        if not fails:
            result = json.loads((cells[name] / "result.json").read_text())
            assert {key: read.summary[key] for key in result} == result
            lines = [json.loads(line) for line in (cells[name] / "metrics.jsonl").read_text().splitlines()]
            told = [(row["step"], row["loss"]) for row in lines if row["stage"] == "unlearning" and "loss" in row]
            assert read.curve("unlearning/loss") == told
    stages = {id: read for id, read in reads.items() if read.run["job_type"] != "cell"}
    # one execution for each heavy result in the store (planning may make the light ones), and one for each that failed
    store = {path.parent.name: path.parts[-3] for path in (tmp_path / "outputs" / "store").glob("*/*/manifest.json")}
    done_ids = {id.split("-")[1] for id, read in stages.items() if read.exit_code == 0}
    assert done_ids <= store.keys()
    assert {store[name] for name in store.keys() - done_ids} <= {"data", "mapping"}
    assert {read.run["job_type"] for read in stages.values() if read.exit_code == 1} == {"unlearning"}
    assert sum(read.exit_code == 1 for read in stages.values()) == 3
