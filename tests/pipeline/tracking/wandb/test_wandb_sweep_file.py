"""docs/wandb_sweep.yaml, expanded as W&B's agent does it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rapidun.config.compose import compose_config

FILE = Path(__file__).parents[4] / "docs" / "wandb_sweep.yaml"


@pytest.fixture
def sweep() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def expand(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The loop of wandb.wandb_agent.Agent._command_run over W&B's own pieces."""
    from wandb.sdk.launch.sweeps import utils

    pieces = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    pieces |= {"interpreter": ["python"], "program": [sweep["program"]], "env": ["/usr/bin/env"]}
    words: list[str] = []
    for word in utils.create_sweep_command(sweep["command"]):
        words += pieces[word[2:-1]] if word.startswith("${") and word.endswith("}") else [word]
    return words


def test_an_agent_runs_the_entry_point_with_overrides(sweep: dict[str, Any]) -> None:
    values = {
        name: entry["values"][0] if "values" in entry else entry["min"] for name, entry in sweep["parameters"].items()
    }
    words = expand(sweep, values)
    assert words[:3] == ["/usr/bin/env", "python", "sweep.py"]
    assert (FILE.parents[1] / words[2]).is_file()
    cfg = compose_config(words[3:])
    assert cfg.tracking.kind.name == "wandb"
    assert (cfg.mapping.tau_f, cfg.mapping.tau_r, cfg.seed) == (0.2, 0.2, 0)
    assert cfg.unlearning.learning_rate == 1e-4


def test_small_numbers_survive_the_command_line(sweep: dict[str, Any]) -> None:
    """Python writes 0.00001234 as 1.234e-05; Hydra has to read it as a number."""
    words = expand(sweep, {"unlearning.learning_rate": 0.00001234, "seed": 2})
    assert compose_config(words[3:]).unlearning.learning_rate == 1.234e-05
