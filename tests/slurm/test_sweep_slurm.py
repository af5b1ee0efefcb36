"""A grid on a real SLURM in good weather: every result once, nobody waits, arrays of a legal size, own devices."""

import json
import re

import pytest
from sweeps import Sweeping

pytestmark = pytest.mark.slurm


def test_24_cells_make_each_result_once(cluster, tmp_path):
    """4 tau x 2 clip x 3 objective: 1 poison, 1 influence and 1 evaluation of the poisoned model, then 6 jobs of cells.

    By hand: 8 mappings (tau x clip), 24 unlearnings, 24 evaluations and the one before unlearning.
    """
    grid = Sweeping(
        tmp_path,
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
    assert json.loads((grid.dir / "summary.json").read_text())["cells"]["done"] == 24
    # the same command finds nothing to do
    handles = grid.handles
    assert "24 cells (0 to run, 24 done), 0 jobs" in grid.run()
    assert grid.handles == handles
    grid.assert_each_made_once()
