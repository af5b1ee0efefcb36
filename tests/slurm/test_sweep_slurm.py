"""A grid on a real SLURM in good weather: every result once, nobody waits, arrays of a legal size, own devices."""

import re
from datetime import datetime

import pytest
from sweeps import Sweeping

pytestmark = pytest.mark.slurm


def test_24_cells_make_each_result_once(cluster, tmp_path):
    """4 tau x 2 clip x 3 objective: 1 poison, 1 influence and 1 evaluation of the poisoned model, then 6 jobs of cells.

    By hand: 8 mappings (tau x clip), 24 unlearnings, 24 evaluations and the one before unlearning.
    """
    grid = Sweeping(
        tmp_path,
        "mapping=rapidun",
        "mapping.tau_f=0.3,0.5,0.7,0.9",
        "mapping.forget.w_max=2,3",
        "unlearning=rapidun,graddiff,idk_sft",
        "resources.cells_per_job=4",
    )
    printed = grid.run()
    assert "24 cells: 24 done" in printed
    made = grid.assert_each_made_once()
    assert made == {
        "data": 1, "model": 1, "poison": 1, "influence": 1, "mapping": 8, "unlearning": 24, "evaluation": 25,
    }  # fmt: skip
    ids = [re.sub(r"-.*", "", id) for id in grid.handles]
    assert {id: ids.count(id) for id in ids} == {"poison": 1, "influence": 1, "evaluation": 1, "cells": 6}
    # the cells are one array
    assert len({handle.partition("_")[0] for id, handle in grid.handles.items() if id.startswith("cells")}) == 1
    # the same command finds nothing to do
    handles = grid.handles
    assert "24 cells (0 to run, 24 done), 0 jobs" in grid.run()
    assert grid.handles == handles
    grid.assert_each_made_once()


def test_arrays_keep_to_the_size_that_is_asked_for(cluster, tmp_path):
    """10 cells with cluster.max_array_size=4: 4 + 4 + 2, behind the same two jobs."""
    grid = Sweeping(
        tmp_path,
        "mapping=rapidun",
        "mapping.tau_f=0.3,0.4,0.5,0.6,0.7",
        "mapping.forget.w_max=2,3",
        "cluster.max_array_size=4",
    )
    grid.run()
    assert grid.states() == {"done": 10}
    grid.assert_each_made_once()
    bases = [handle.partition("_")[0] for id, handle in grid.handles.items() if id.startswith("cells")]
    assert [bases.count(base) for base in dict.fromkeys(bases)] == [4, 4, 2]


def test_a_plan_of_2000_cells_is_cut_into_legal_arrays(cluster, tmp_path):
    """MaxArraySize is 1001, so indices end at 1000: 2000 cells are 1001 + 999. Nothing is submitted."""
    grid = Sweeping(
        tmp_path, "mapping=rapidun", "seed=range(50)", "mapping.tau_f=range(0.1,1.05,0.1)", "unlearning.lora.r=2,4,8,16"
    )
    printed = grid.run("sweep.dry_run=true")
    assert "2000 cells: 2000 to run" in printed
    assert "planning: 2000 of 2000 cells" in printed
    arrays = re.findall(r"^# (\d+) jobs as --array=(\d+)-(\d+)%\d+: cells-", printed, flags=re.MULTILINE)
    assert [tuple(map(int, array)) for array in arrays] == [(1001, 0, 1000), (999, 0, 998)]
    assert not grid.dir.exists()
    assert not cluster.command("squeue", "-h", "-n", "rapidun-grid")


def test_each_array_task_sees_its_own_device(cluster, tmp_path):
    """Four cells of one GPU each on two fake GPUs; no two that run at the same time see the same one."""
    grid = Sweeping(
        tmp_path, "resources=gpu", "model.device=cpu", "model.dtype=float32", "mapping=rapidun",
        "mapping.tau_f=0.3,0.7", "seed=0,1",
    )  # fmt: skip
    grid.run()
    statuses = grid.statuses()
    assert {status["state"] for status in statuses.values()} == {"done"}
    assert {status["devices"] for status in statuses.values()} <= {"0", "1"}
    cells = [statuses[cell] for cell in grid.cells]
    assert {cell["devices"] for cell in cells} == {"0", "1"}
    for one in cells:
        beside = [other for other in cells if other is not one and other["devices"] == one["devices"]]
        assert not any(span(other)[0] < span(one)[1] and span(one)[0] < span(other)[1] for other in beside)


def span(status: dict) -> tuple[datetime, datetime]:
    """When a cell began and ended."""
    return datetime.fromisoformat(status["started"]), datetime.fromisoformat(status["finished"])
