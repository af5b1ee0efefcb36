"""What stands beside a cell in its job changes no number: eight cells one by one, and eight in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapidun.base.files import sha256_file

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from grids import ROOT, Grid  # noqa: E402

pytestmark = pytest.mark.slow

# debug=fast with enough steps that the cells differ, and attacks that train and that draw
CELLS = [
    "debug=fast", "poison.max_steps=20", "tracking=none", "evaluation=attacks_quick",
    "evaluation.attacks.run=[relearning,sampling]", "evaluation.attacks.relearning.rows=[poisoned]",
    "evaluation.privacy.run=[membership]", "mapping=uniform", "unlearning=ga,npo", "unlearning.max_steps=2,3,4,5",
    "unlearning.loss_cap=20", "resources.num_threads=1",
]  # fmt: skip
# of a result, what depends on the machine
COSTS = ("seconds.", "peak_memory_gb.")
# of an artifact, what tells times
TIMED = ("manifest.json", "metrics.jsonl")


def results(grid: Grid) -> dict[str, dict[str, object]]:
    """Cell -> its numbers, to the last bit: JSON holds every digit of a float."""
    found = {name: json.loads((grid.path / hash / "result.json").read_text()) for name, hash in grid.cells().items()}
    return {name: {k: v for k, v in one.items() if not k.startswith(COSTS)} for name, one in found.items()}


def made(grid: Grid) -> dict[str, str]:
    """Every file of every artifact -> its SHA-256: weights, adapters, what attacked models said."""
    store = grid.cwd / "outputs" / "store"
    kept = [path for path in store.glob("*/*/**/*") if path.is_file() and path.name not in TIMED]
    return {str(path.relative_to(store)): sha256_file(path) for path in kept}


def test_one_and_eight_cells_a_job_give_the_same_numbers_to_the_bit(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, str(HERE / "forked.py"), str(tmp_path), *CELLS], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    apart, together = (Grid(tmp_path / count) for count in ("1", "8"))
    for grid, count in ((apart, 8), (together, 1)):
        assert set(grid.states().values()) == {"done"}
        assert len(list(grid.path.glob("jobs/cells-*.json"))) == count
    found = results(apart)
    # the cells are no copies of one another (of the first step alone npo and ga are alike), and were attacked
    assert len(found) == 8
    assert len({one["ppl_clean"] for one in found.values()}) > 4
    assert {"asr_relearn_max", "asr@2", "mia_loss"} <= set.intersection(*map(set, found.values()))
    for name, one in results(together).items():
        assert one == found[name], name
    assert made(together) == made(apart)
