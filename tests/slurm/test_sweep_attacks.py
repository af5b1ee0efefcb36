"""Cells whose evaluation attacks the unlearned model, on a real SLURM: their figures end in the leaderboard."""

import csv
import json

import pytest
from sweeps import Sweeping

from rapidun.report.metrics import METRICS, main_columns

pytestmark = pytest.mark.slurm

FIGURES = ("asr_relearn_max", "asr_int8", "mia_min_k_pp")


def test_cells_with_attacks(cluster, tmp_path):
    """Two cells: what the poisoned model withstands is made once, in jobs that both wait for."""
    grid = Sweeping(
        tmp_path, "evaluation=attacks_quick", "evaluation.attacks.run=[relearning,quantisation]",
        "evaluation.attacks.relearning.rows=[poisoned]", "evaluation.attacks.quantisation.formats=[int8]",
        "evaluation.privacy.run=[membership]", "mapping=uniform", "unlearning=npo,ga", "unlearning.loss_cap=20",
    )  # fmt: skip
    assert "2 cells: 2 done" in grid.run()
    # every job went through SLURM
    assert grid.handles and None not in grid.handles.values()
    lines = list(csv.DictReader((grid.dir / "summary.csv").open()))
    # among the columns of page and console
    assert set(FIGURES) <= set(main_columns(set(lines[0])))
    page = (grid.dir / "summary.md").read_text()
    for name in FIGURES:
        figures = [json.loads((grid.dir / cell / "result.json").read_text())[name] for cell in grid.cells]
        assert sorted(float(line[name]) for line in lines) == sorted(figures)
        assert f"| {METRICS[name].heading} |" in page
    made = grid.executions()
    assert made["unlearning"] == 2
    kinds = [manifest["stage"] for manifest in grid.manifests()]
    # of each cell one that relearns and one that is quantised; of the poisoned model the latter
    assert kinds.count("attack") == 5
