"""W&B offline in the tasks of a SLURM array, read back with W&B's own reader."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from sweeps import Sweeping

READER = Path(__file__).parents[1] / "pipeline" / "tracking" / "conftest.py"


def read_all(folder: Path) -> dict[str, Any]:
    """Run id -> what W&B's reader says, of every offline run below the folder."""
    spec = importlib.util.spec_from_file_location("tracking_tools", READER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.read_all(folder))


@pytest.mark.slurm
def test_four_tasks_leave_their_runs_in_one_group(cluster: Cluster, tmp_path: Path) -> None:
    """Two weightings x (one that trains, one whose loss is no number): four tasks, two of which fail."""
    sweep = Sweeping(
        tmp_path,
        "tracking=wandb",
        "poison.max_steps=2",
        "mapping=rapidun,uniform",
        "unlearning.ascent_alpha=1,1e38",
    )
    out = sweep.run(expect=1)
    assert f"rapidun wandb sync {sweep.dir.relative_to(tmp_path)}" in out
    reads = read_all(sweep.dir)
    assert {read.run["run_group"] for read in reads.values()} == {"grid"}
    cells = {id.split("-")[1]: read for id, read in reads.items() if read.run["job_type"] == "cell"}
    assert cells.keys() == set(sweep.cells) and len(cells) == 4
    for name, read in cells.items():
        status = sweep.statuses()[name]
        assert status["job_id"] and "_" in status["job_id"]
        settings = json.loads((sweep.dir / name / "settings.json").read_text())
        assert read.config["mapping"] == settings["mapping"]
        fails = settings["unlearning"]["ascent_alpha"] == 1e38
        assert (read.exit_code, read.summary["state"]) == ((1, "failed") if fails else (0, "done"))
        if not fails:
            result = json.loads((sweep.dir / name / "result.json").read_text())
            assert {key: read.summary[key] for key in result} == result
            lines = [json.loads(line) for line in (sweep.dir / name / "metrics.jsonl").read_text().splitlines()]
            told = [(row["step"], row["loss"]) for row in lines if row["stage"] == "unlearning" and "loss" in row]
            assert told and read.curve("unlearning/loss") == told
    # what the cells share ran once, as stages of the same group
    kinds = [read.run["job_type"] for read in reads.values()]
    assert kinds.count("poison") >= 1 and kinds.count("influence") == 1
    failed = [read.run["job_type"] for read in reads.values() if read.exit_code]
    assert sorted(failed) == ["cell", "cell", "unlearning", "unlearning"]
