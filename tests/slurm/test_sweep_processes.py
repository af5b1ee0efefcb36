"""Cells of two processes: poison and unlearning train data-parallel over gloo, the other stages on the first one."""

import json

import pytest
from sweeps import Sweeping

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def grids(cluster, tmp_path_factory):
    """The same two cells with one process each and with two, in stores of their own."""
    made = {}
    for number in (1, 2):
        # steps enough to see a drift
        axes = ["mapping=rapidun", "mapping.tau_f=0.3,0.7", "poison.max_steps=8", "unlearning.max_steps=8"]
        grid = Sweeping(tmp_path_factory.mktemp(f"processes{number}"), *axes, f"resources.num_processes={number}")
        grid.run()
        made[number] = grid
    return made


def test_every_job_had_two_tasks_and_one_run_folder(grids):
    """SLURM started two ranks for each job; the run folders are whole, and each result was made once."""
    one, two = grids[1], grids[2]
    assert {status["processes"] for status in two.statuses().values()} == {2}
    assert {status["processes"] for status in one.statuses().values()} == {1}
    assert {name.rsplit("_", 2)[1] for name in two.logs()} == {"0", "1"}
    two.assert_each_made_once()
    for cell in two.cells:
        whole = {path.relative_to(one.dir / cell) for path in (one.dir / cell).rglob("*") if path.is_file()}
        assert {path.relative_to(two.dir / cell) for path in (two.dir / cell).rglob("*") if path.is_file()} == whole
    # the second rank says nothing of its own: no stage lines twice
    assert not [name for name, text in two.logs().items() if "_1_log" in name and "done  " in text]


@pytest.mark.parametrize("stage", ["poison", "unlearning"])
def test_two_processes_take_the_same_steps_as_one(grids, stage):
    """The loss at every step, relative error at most 1e-3: float32 sums in another order, eight steps long."""
    compared = 0
    for cell in grids[1].cells:
        first, second = (losses(grid, cell, stage) for grid in (grids[1], grids[2]))
        assert first.keys() == second.keys()
        assert len(first) > 1
        compared += len(first)
        assert second == pytest.approx(first, rel=1e-3)
    assert compared >= 16


def losses(grid: Sweeping, cell: str, stage: str) -> dict[int, float]:
    """Step -> training loss, from a run folder's metrics.jsonl."""
    lines = map(json.loads, (grid.dir / cell / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["stage"] == stage and "loss" in line}
