"""A fingerprint of an edit holds only what the edit reads, and training's fingerprints know nothing of edits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapidun.config.edits import BudgetRows, Fisher, FisherParams, InfluenceStep, Repselect, TaskVector
from rapidun.config.influence import Precondition
from rapidun.config.model import ModelConfig, Quantisation
from rapidun.config.run import RunConfig
from rapidun.config.training import Target
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.stages.influence.recipe import STAGE as INFLUENCE
from rapidun.stages.recipe import ADAPTER, CURVATURE, DATA, POISONED, UNLEARNED, WEIGHTS, Model, Recipe
from rapidun.stages.unlearning.edits.recipe import edit_faults
from rapidun.stages.unlearning.recipe import STAGE, TRAINED


def context(*, seed: int = 42, **unlearning: Any) -> Any:
    """A configuration over a model and a pack that are not there."""
    products: dict[Any, Any] = {POISONED: Model("m", Path("m")), ADAPTER: None, DATA: None}
    products |= {WEIGHTS: SimpleNamespace(fingerprint="w")}
    ctx: Any = SimpleNamespace(
        cfg=RunConfig(seed=seed, unlearning=UnlearningConfig(**unlearning)),
        split=lambda name: name,
        counts=dict.fromkeys(("forget", "retain", "val_clean"), 9),
        numerics={"dtype": "float32"},
        once=lambda name, make: make(),
        path=lambda recipe: Path(recipe.kind),
        asked=lambda stage: False,
    )
    ways = {**STAGE.provides, CURVATURE: INFLUENCE.provides[CURVATURE]}
    ctx.get = lambda product: ways[product](ctx) if product in (CURVATURE, TRAINED) else products[product]
    return ctx


def recipe(objective: Objective, **settings: Any) -> Recipe:
    found: Recipe = STAGE.provides[TRAINED](context(objective=objective, **settings))
    return found


def needed(found: Recipe, kind: str) -> str:
    [one] = [need for need in found.needs if isinstance(need, Recipe) and need.kind == kind]
    return one.fingerprint


EDITS = [objective for objective in Objective if objective.traits.edits]


@pytest.mark.parametrize("objective", EDITS, ids=lambda one: one.name)
def test_only_what_is_read(objective: Objective) -> None:
    first = recipe(objective)
    assert first.kind == "edit" and first.stage == first.link == "unlearning" and not first.together
    unread: list[dict[str, Any]] = [{"ascent_alpha": 3.0}, {"mix_ratio": 1}, {"eval_steps": 3}]
    unread += [{"retain_coeff": 2.0}]
    sections = {"fisher": Fisher(alpha=2.0), "task_vector": TaskVector(scale=0.1), "repselect": Repselect(rounds=3)}
    unread += [{name: section} for name, section in sections.items() if name != objective.name]
    if objective is not Objective.task_vector:
        unread += [{"learning_rate": 0.5}, {"num_train_epochs": 9.0}, {"target": Target.full}]
    for change in unread:
        assert recipe(objective, **change).fingerprint == first.fingerprint, change
    assert (recipe(objective, seed=1).fingerprint == first.fingerprint) is (objective is Objective.fisher)


def test_what_changes_a_result_is_in_its_fingerprint() -> None:
    for objective, name, sections in (
        (Objective.fisher, "fisher", [Fisher(alpha=2.0), Fisher(params=FisherParams.all_linear)]),
        (Objective.task_vector, "task_vector", [TaskVector(scale=0.1)]),
        (Objective.influence_step, "influence_step", [
            InfluenceStep(budget=0.3), InfluenceStep(damping_factor=1.0),
            InfluenceStep(precondition=Precondition.ekfac), InfluenceStep(budget_rows=BudgetRows.val),
        ]),
        (Objective.repselect, "repselect", [Repselect(rounds=3)]),
    ):  # fmt: skip
        found = {recipe(objective, **{name: section}).fingerprint for section in sections}
        assert len(found | {recipe(objective).fingerprint}) == len(sections) + 1


def test_a_budget_and_a_rate_stand_for_each_other() -> None:
    first, rate = recipe(Objective.repselect), Repselect(learning_rate=1.0)
    assert recipe(Objective.repselect, repselect=rate).fingerprint == first.fingerprint
    fixed = [Repselect(budget=None, learning_rate=1.0), Repselect(budget=None, learning_rate=1.0, spend=0.5)]
    found = {recipe(Objective.repselect, repselect=section).fingerprint for section in fixed}
    assert len(found) == 1 and first.fingerprint not in found


def test_scales_share_one_training_and_budgets_one_curvature() -> None:
    scales = [recipe(Objective.task_vector, task_vector=TaskVector(scale=scale)) for scale in (0.5, 1.0)]
    assert len({one.fingerprint for one in scales}) == 2
    assert len({needed(one, "task_model") for one in scales}) == 1
    other = recipe(Objective.task_vector, learning_rate=0.5)
    assert needed(other, "task_model") != needed(scales[0], "task_model")
    assert needed(recipe(Objective.task_vector, save_steps=7), "task_model") == needed(scales[0], "task_model")
    full = recipe(Objective.task_vector, target=Target.full, lora=scales and UnlearningConfig().lora)
    assert needed(full, "task_model") != needed(scales[0], "task_model")
    steps = [InfluenceStep(budget=0.1), InfluenceStep(damping_factor=0.5), InfluenceStep(budget_rows=BudgetRows.val)]
    found = [recipe(Objective.influence_step, influence_step=step) for step in steps]
    assert len({one.fingerprint for one in found}) == 3 and len({needed(one, "curvature") for one in found}) == 1


def test_training_knows_nothing_of_edits() -> None:
    first = recipe(Objective.rapidun)
    assert not {one.name for one in EDITS} & set(first.inputs["settings"])
    assert recipe(Objective.rapidun, fisher=Fisher(alpha=2.0)).fingerprint == first.fingerprint


def test_what_evaluation_gets() -> None:
    def found(objective: Objective, **settings: Any) -> Any:
        return STAGE.provides[UNLEARNED](context(objective=objective, **settings))

    model = found(Objective.fisher)
    assert model.adapter is None and model.model.folder == Path("edit/model")
    lora = found(Objective.task_vector)
    assert lora.model.folder == Path("m") and lora.adapter.folder == Path("edit/adapter")
    assert found(Objective.task_vector, target=Target.full).model.folder == Path("edit/model")


def test_faults() -> None:
    ctx = context(objective=Objective.fisher, adapter="a")
    ctx.cfg.model = ModelConfig(quantisation=Quantisation["4bit"])
    adapter, quantised = edit_faults(ctx)
    assert "need adapter=null with objective=fisher" in adapter
    assert "need unquantised weights to change with objective=fisher, got model.quantisation=" in quantised
    # a negated adapter stands over whatever base
    ctx = context(objective=Objective.task_vector)
    ctx.cfg.model = ModelConfig(quantisation=next(q for q in Quantisation if q.name != "none"))
    assert edit_faults(ctx) == []
