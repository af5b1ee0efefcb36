"""A launch that is refused leaves what an earlier one wrote as it was; what is no sweep is told as such."""

import sys
from pathlib import Path

import pytest

from rapidun.base.errors import ConfigError
from rapidun.sweep.folder import SweepFolder

HERE = str(Path(__file__).parent)
sys.path[:0] = [] if HERE in sys.path else [HERE]

from grids import FAST, Grid  # noqa: E402


def test_a_refused_launch_writes_nothing(tmp_path: Path) -> None:
    grid = Grid(tmp_path, "debug=fast", "stages=[data]", "tracking=none")
    refused = ("hydra/launcher=rapidun_local", "resources.num_gpus=999", "seed=0,1,2")

    status, said = grid.run(*refused)
    assert status == 2 and "resources.num_gpus" in said
    assert not grid.path.exists()

    assert grid.run("seed=0,1")[0] == 0
    before = {path: path.read_bytes() for path in grid.path.rglob("*") if path.is_file()}
    assert grid.run(*refused)[0] == 2
    assert {path: path.read_bytes() for path in grid.path.rglob("*") if path.is_file()} == before


def test_weights_that_do_not_fit_are_told_before_anything_is_written(tmp_path: Path) -> None:
    grid = Grid(tmp_path, "tracking=none", "mapping=file", "seed=0,1")
    weights = tmp_path / "weights.jsonl"
    weights.write_text('{"index": 0, "weight": 1.0}\n')
    # what cells share of it is made before they start
    fast = [*FAST, f"mapping.forget={weights}", f"mapping.retain={weights}"]
    status, said = grid.run(*fast)
    assert status == 2 and "need a weight for each" in said
    assert not grid.path.exists()


def test_a_sweep_json_without_cells_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="need cells"):
        SweepFolder.existing(tmp_path)
