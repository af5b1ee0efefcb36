"""A cell whose evaluation attacks the unlearned model, on a real SLURM: its figures end in the leaderboard."""

import csv
import json

import pytest
from sweeps import Sweeping

from rapidun.report.metrics import METRICS, main_columns

pytestmark = pytest.mark.slurm

FIGURES = ("asr_relearn_max", "asr_int8", "mia_min_k_pp")


def test_a_cell_with_attacks(cluster, tmp_path):
    """Of the attacks of debug=fast one that trains and one that does not, and membership inference."""
    grid = Sweeping(
        tmp_path, "evaluation=attacks_quick", "evaluation.attacks.run=[relearning,quantisation]",
        "evaluation.attacks.relearning.rows=[poisoned]", "evaluation.attacks.quantisation.formats=[int8]",
        "evaluation.privacy.run=[membership]", "mapping=uniform", "unlearning=npo",
    )  # fmt: skip
    assert "1 cells: 1 done" in grid.run()
    (cell,) = grid.cells
    # every job went through SLURM
    assert grid.handles and None not in grid.handles.values()
    result = json.loads((grid.dir / cell / "result.json").read_text())
    (line,) = csv.DictReader((grid.dir / "summary.csv").read_text().splitlines())
    # among the columns of page and console
    assert set(FIGURES) <= set(main_columns(set(line)))
    table = (grid.dir / "summary.md").read_text()
    for name in FIGURES:
        assert float(line[name]) == result[name]
        assert f"| {METRICS[name].heading} " in table
    assert 0 < result["mia_min_k_pp"] < 1
    # the unlearned model relearns and is quantised, the poisoned one is quantised
    assert [manifest["stage"] for manifest in grid.manifests()].count("attack") == 3
