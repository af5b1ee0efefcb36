"""Each edit through the whole pipeline, on a model of a few thousand weights that is made from scratch."""

import json
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.base.errors import ConfigError
from rapidun.base.store import Store
from rapidun.config.cells import compose_cells
from rapidun.sweep.plan import Planner, plan_cells

FAST = ["debug=fast", "resources.num_threads=1", "mapping=uniform"]
MORE = {
    "fisher": ["unlearning.fisher.alpha=2"],
    "task_vector": [],
    "influence_step": ["unlearning.influence_step.budget_rows=val", "unlearning.influence_step.budget=1e-7"],
    "repselect": ["unlearning.repselect.rounds=2", "unlearning.repselect.budget=1e-7"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edits") / "store"


def run(store: Path, folder: Path, name: str, *more: str) -> Any:
    return rapidun.run([*FAST, f"store_dir={store}", f"run_dir={folder}", f"unlearning={name}", *MORE[name], *more])


SLOW = ("task_vector", "repselect")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MORE]
)
def test_end_to_end(store: Path, tmp_path: Path, name: str) -> None:
    found = run(store, tmp_path / "run", name)
    assert found.metrics["unlearning.changed_share"] > 0 and found.metrics["unlearning.change_norm"] > 0
    report = json.loads((tmp_path / "run" / "unlearning" / "edits.json").read_text())
    assert report["changed_share"] == found.metrics["unlearning.changed_share"]
    kind = "adapter/adapter_model" if name == "task_vector" else "model/model"
    assert (tmp_path / "run" / "unlearning" / f"{kind}.safetensors").is_file()
    # what was evaluated is the edited model
    assert found.metrics["ppl_clean"] != found.metrics["before.ppl_clean"]
    again = run(store, tmp_path / "again", name)
    same = {key for key in found.metrics if not key.startswith(("seconds", "peak_memory"))}
    assert {key: again.metrics[key] for key in same} == {key: found.metrics[key] for key in same}
    stages = json.loads((tmp_path / "again" / "status.json").read_text())["stages"]
    assert all(entry["cached"] for entry in stages.values())


def test_a_sweep_over_the_scale_trains_once(store: Path) -> None:
    """Two scales: one job that trains, behind the poison; the cells wait for it."""
    scales = ["unlearning=task_vector", "unlearning.task_vector.scale=0.25,0.75", "unlearning.learning_rate=1e-3"]
    cells = compose_cells([*FAST, f"store_dir={store}", *scales])
    planner = Planner(Store(store))
    assert plan_cells(planner, cells) == []
    plan = planner.plan(cells)
    trained = [node for node in plan.nodes.values() if node.recipe.kind == "task_model"]
    edits = [node for node in plan.nodes.values() if node.recipe.kind == "edit"]
    assert len(trained) == 1 and len(edits) == 2
    [job] = [job for job in plan.jobs if trained[0] in job.nodes]
    assert job.stage == "unlearning"
    assert all(job.id in other.needs for other in plan.jobs if other.cells)


@pytest.mark.slow
def test_two_scales_in_the_store(store: Path, tmp_path: Path) -> None:
    for scale in ("0.5", "2"):
        run(store, tmp_path / scale, "task_vector", f"unlearning.task_vector.scale={scale}", "seed=7")
    made = [json.loads(path.read_text()) for path in (store / "task_model").glob("*/manifest.json")]
    assert sum(manifest["inputs"]["seed"] == 7 for manifest in made) == 1


def test_settings_that_an_edit_does_not_read(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"influence_step.budget > 0 with budget_on=kl"):
        run(store, tmp_path / "none", "influence_step", "unlearning.influence_step.budget=0")
    with pytest.raises(ConfigError, match=r"need adapter=null with objective=fisher|need a PEFT folder"):
        run(store, tmp_path / "adapter", "fisher", f"unlearning.adapter={tmp_path}")
