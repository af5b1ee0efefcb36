"""Every weighting by its name alone, through the whole pipeline; losses and influence are shared between them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import rapidun
from rapidun.base.errors import ArtifactError, ConfigError
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config.cells import compose_cells
from rapidun.config.compose import compose_config
from rapidun.pipeline.run import Result, find_recipe
from rapidun.stages.recipes import Recipes
from rapidun.sweep.plan import Plan, Planner, plan_cells

FAST = ["debug=fast", "resources.num_threads=1"]
NEW = ["loreun_static", "loreun_dynamic", "loreun_release", "guard", "contrastive", "repsim"]


def faults(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides)
    return caught.value.faults


def planned(tmp_path: Path, *overrides: str) -> Plan:
    store = Store(tmp_path / "store")
    cells = compose_cells(["debug=fast", f"store_dir={store.root}", *overrides])
    planner = Planner(store)
    assert plan_cells(planner, cells) == []
    return planner.plan(cells)


def test_presets_bring_the_influence_that_they_need() -> None:
    assert compose_config(["mapping=repsim"]).influence.method.name == "repsim"
    contrastive = compose_config(["mapping=contrastive"]).influence
    assert contrastive.method.name == "sketch" and contrastive.contrast
    exact = compose_config(["mapping=contrastive", "influence=exact", "influence.contrast=true"]).influence
    assert exact.method.name == "exact" and exact.contrast
    assert compose_config(["mapping=guard"]).influence == compose_config([]).influence


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["mapping=repsim", "influence=exact"], "need method=repsim with mapping.method=repsim, got method=exact"),
        (["mapping=contrastive", "influence=exact"], "pass influence.contrast=true"),
        (["mapping=contrastive", "influence.contrast=false"], "need contrast=true"),
        (["mapping.method=contrastive"], "need contrast=true"),
        (["mapping=guard", "influence=repsim"], "need gradients with mapping.method=guard"),
        (["mapping=guard", "influence.queries=val"], "Pass influence.score=dot"),
        (["mapping=loreun_dynamic", "unlearning.weights_act=sampling"], "mapping=loreun_static"),
        (["mapping=loreun_dynamic", "mapping.null=random"], "null=none, shuffled or uniform"),
        (["mapping=loreun_static", "mapping.loreun.tau=0"], "loreun.tau > 0"),
        (["mapping=guard", "mapping.guard.tau=-1"], "guard.tau > 0"),
        (["mapping=loreun_static", "mapping.forget.w_min=1.5"], "w_min <= 1 <= w_max"),
        (["mapping=rapidun", "mapping.forget.w_min=-0.1"], "0 <= w_min <= w_max"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_one_message(overrides: list[str], words: str) -> None:
    (fault,) = faults(*overrides)
    assert words in fault


@pytest.mark.parametrize(
    "overrides",
    [
        ["mapping=rapidun", "mapping.forget.w_min=0", "mapping.retain.w_min=0"],
        ["mapping=guard", "influence.queries=val", "influence.score=dot"],
        ["mapping=loreun_dynamic", "mapping.null=shuffled"],
        ["mapping=loreun_dynamic", "mapping.null=uniform", "unlearning.weights_act=sampling"],
        ["mapping=repsim", "influence=exact", "mapping.scores.path=scores.safetensors"],
        ["mapping=loreun_static", "influence=bm25"],
    ],
    ids=" ".join,
)
def test_what_goes_together(overrides: list[str]) -> None:
    compose_config(overrides)


def test_a_sweep_over_a_temperature_measures_the_losses_once_in_a_job(tmp_path: Path) -> None:
    """They need the model, so a job makes them, with the accelerator that jobs have; influence is not waited for."""
    plan = planned(tmp_path, "mapping=loreun_static", "mapping.loreun.tau=0.3,0.7", "unlearning=rapidun,ga")
    kinds = [node.recipe.kind for node in plan.nodes.values()]
    assert kinds.count("losses") == 1 and kinds.count("mapping") == 2
    (job,) = [job for job in plan.jobs if job.id.startswith("losses")]
    assert [node.recipe.kind for node in job.nodes] == ["losses", "mapping", "mapping"]
    (poison,) = [job.id for job in plan.jobs if job.id.startswith("poison")]
    assert job.needs == [poison]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weightings")


def run(store: Path, name: str, *overrides: str) -> Result:
    return rapidun.run([*FAST, f"store_dir={store / 'store'}", f"run_dir={store / name}", *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("weighting", NEW)
def test_by_its_name_alone(store: Path, weighting: str) -> None:
    result = run(store, weighting, f"mapping={weighting}")
    folder = result.run_dir
    forget, retain = (
        [
            json.loads(line)["weight"]
            for line in (folder / "mapping" / f"{group}_weights.jsonl").read_text().splitlines()
        ]
        for group in ("forget", "retain")
    )
    assert len(forget) == 6 and len(retain) == 18 and len(set(forget)) > 1
    assert (len(set(retain)) == 1) == (weighting not in ("contrastive", "repsim"))
    assert (folder / "report.html").is_file() and "asr_seen" in result.metrics
    renewed = (folder / "unlearning" / "weights_path.jsonl").is_file()
    assert renewed == (weighting == "loreun_dynamic")
    if weighting == "repsim":
        # hidden states only: nothing says what gradients were taken of
        assert not (folder / "influence" / "parameters.json").exists()


@pytest.mark.slow
def test_losses_are_measured_once_and_need_no_influence(store: Path) -> None:
    run(store, "poisoned", "stages=[data,poison]")
    made = store / "store" / "losses"
    before = len(list(made.glob("*"))) if made.is_dir() else 0
    for tau in ("0.2", "0.4"):
        run(store, f"alone{tau}", "stages=[mapping]", "mapping=loreun_static", f"mapping.loreun.tau={tau}")
    assert len(list(made.glob("*"))) == max(before, 1)
    with pytest.raises(ArtifactError, match="poison"):
        run(store, "bare", "stages=[mapping]", "mapping=loreun_static", "poison.seed=77")


@pytest.mark.parametrize(
    "overrides",
    [
        ["mapping=uniform,loreun_static", "unlearning=rapidun,ga"],
        ["mapping=uniform,contrastive", "unlearning.token_weights=none,influence"],
        ["unlearning=influence_step", "unlearning.influence_step.budget=0.01,0.02"],
        ["unlearning=task_vector", "unlearning.task_vector.scale=0.5,1", "mapping=rapidun,loreun_dynamic"],
        ["unlearning=retrain,fisher", "seed=1,2"],
        ["evaluation=attacks_quick", "poison.retrain=true", "unlearning=rapidun,retrain"],
    ],
    ids=" ".join,
)
def test_a_job_finds_the_artifact_that_it_is_to_make_by_its_stage_alone(tmp_path: Path, overrides: list[str]) -> None:
    plan = planned(tmp_path, *overrides)
    nodes = [node for job in plan.jobs for node in job.nodes]
    assert nodes
    planner = Planner(Store(tmp_path / "store"))
    for node in nodes:
        cfg = replace(node.cell.cfg, stages=[node.recipe.stage])
        recipes = Recipes(cfg, planner.store, find_data=planner._find_data, tracker=Tracker(), memo=planner.memo)
        assert find_recipe(node.recipe.id, recipes.of_stage(node.recipe.stage)).id == node.recipe.id
