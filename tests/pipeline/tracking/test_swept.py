import json
from pathlib import Path

import pytest

from rapidun.config.run import RunConfig
from rapidun.pipeline.tracking.swept import axes_of, group_choices, swept_settings, title_of

TASK = [
    "debug=fast",
    "mapping=uniform",
    "+experiment=x",
    "~tracking",
    "mapping.tau_f=3e-1",
    "store_dir=/somewhere",
    "seed=7",
]


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    (tmp_path / "overrides.json").write_text(json.dumps({"task": TASK, "axes": {"mapping": "uniform", "seed": "7"}}))
    return tmp_path


def test_axes_are_what_a_cell_is_called_by(cell: Path) -> None:
    cfg = RunConfig(seed=7)
    assert title_of(cfg, cell) == "mapping=uniform seed=7"
    assert swept_settings(cfg, cell) == {"mapping": "uniform", "seed": 7}


def test_choices_of_groups_are_told_from_settings(cell: Path) -> None:
    assert group_choices(RunConfig(), cell) == {"debug": "fast", "mapping": "uniform", "experiment": "x"}


def test_a_dict_of_settings_is_no_choice(tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps({"task": ["++cluster.environment={TOKEN:secret}", "seed=7"]}))
    assert group_choices(RunConfig(), tmp_path) == {}


def test_without_axes_every_override_counts(tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps({"task": ["mapping.tau_f=3e-1", "+experiment=x"]}))
    cfg = RunConfig()
    cfg.mapping.tau_f = 0.3
    assert swept_settings(cfg, tmp_path) == {"mapping.tau_f": 0.3, "experiment": "x"}
    assert title_of(cfg, tmp_path) == "mapping.tau_f=3e-1 experiment=x"


def test_a_run_outside_a_sweep(tmp_path: Path) -> None:
    cfg = RunConfig(name="alone")
    assert axes_of(tmp_path) == group_choices(cfg, tmp_path) == swept_settings(cfg, tmp_path) == {}
    assert title_of(cfg, tmp_path) == "alone"
