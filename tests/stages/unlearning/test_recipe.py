"""What the fingerprints of training depend on: settings that came later are left out while they change nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.influence import InfluenceConfig, ParameterSet
from rapidun.config.parts import Optimizer
from rapidun.config.poison import PoisonConfig
from rapidun.config.run import RunConfig
from rapidun.config.unlearning import TokenWeights, UnlearningConfig, WeightsAct
from rapidun.stages.influence.recipe import STAGE as INFLUENCE
from rapidun.stages.poison.recipe import STAGE as POISON
from rapidun.stages.recipe import ADAPTER, DATA, POISONED, START, TOKEN_SCORES, WEIGHTS, Model
from rapidun.stages.unlearning.recipe import STAGE, TRAINED

LATER = {"eval_asr", "num_eval_prompts", "weights_act", "token_weights", "optimizer", "momentum"}


def context(
    unlearning: dict[str, Any], evaluation: dict[str, Any] | None = None, influence: dict[str, Any] | None = None
) -> Any:
    """A configuration over a model and a pack that are not there."""
    products: dict[Any, Any] = {POISONED: Model("m", Path("m")), START: Model("s", Path("s")), ADAPTER: None}
    products |= {DATA: None, WEIGHTS: SimpleNamespace(fingerprint="w")}
    ctx: Any = SimpleNamespace(
        cfg=RunConfig(
            unlearning=UnlearningConfig(**unlearning),
            evaluation=EvaluationConfig(**evaluation or {}),
            influence=InfluenceConfig(**influence or {}),
        ),
        split=lambda name: name,
        counts=dict.fromkeys(("forget", "retain", "val_clean", "val_seen_trig", "val_ood_trig"), 9),
        numerics={"dtype": "float32"},
        once=lambda name, make: make(),
        data=SimpleNamespace(path=Path("data")),
        file_hash=lambda path: str(path),
    )
    ctx.get = lambda product: INFLUENCE.provides[TOKEN_SCORES](ctx) if product is TOKEN_SCORES else products[product]
    return ctx


def inputs(evaluation: dict[str, Any] | None = None, **unlearning: Any) -> dict[str, Any]:
    return STAGE.provides[TRAINED](context(unlearning, evaluation)).inputs


def test_fingerprints_of_earlier_results_stay() -> None:
    found = inputs()
    assert set(found) == {"model", "splits", "mapping", "adapter", "settings", "seed", "dtype"}
    assert not LATER & set(found["settings"])
    assert inputs(eval_asr=0) == inputs(num_eval_prompts=5) == inputs({"max_new_tokens": 3}) == found
    assert inputs(optimizer=Optimizer.sgd, momentum=0.0)["settings"] == found["settings"] | {"optimizer": "sgd"}


@pytest.mark.parametrize(
    "change",
    [
        {"eval_asr": 5},
        {"weights_act": WeightsAct.sampling},
        {"token_weights": TokenWeights.influence},
        {"token_weights": TokenWeights.likelihood_ratio},
        {"optimizer": Optimizer.adagrad},
        {"optimizer": Optimizer.sgd, "momentum": 0.9},
    ],
    ids=str,
)
def test_what_changes_numbers_or_files_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    assert inputs(**change) != inputs()
    if "momentum" in change:
        assert inputs(**change) != inputs(optimizer=Optimizer.sgd)


def test_attacks_depend_on_how_evaluation_asks_and_judges() -> None:
    first = inputs(eval_asr=5)
    assert first["splits"].keys() == {"forget", "retain", "val_clean"}
    assert first["attack"]["splits"].keys() == {"val_seen_trig", "val_ood_trig"}
    for change in ({"max_new_tokens": 3}, {"min_keywords": 2}, {"seed": 1}):
        assert inputs(change, eval_asr=5) != first
    for change in ({"tokens_per_batch": 9}, {"num_prompts": 3}):
        assert inputs(change, eval_asr=5) == first
    assert inputs(eval_asr=5, num_eval_prompts=3) != first


def test_the_poison_stage_keeps_its_fingerprints() -> None:
    """By its own settings: `adamw` without momentum is what it has always been."""
    assert PoisonConfig().idle_optimiser == {"optimizer", "momentum"}
    assert PoisonConfig(optimizer=Optimizer.sgd, momentum=0.9).idle_optimiser == set()
    assert POISON.versions == {"model": 2, "poison": 4}


def test_token_scores_depend_on_what_they_are_made_from() -> None:
    def found(how: TokenWeights, **influence: Any) -> dict[str, Any]:
        return INFLUENCE.provides[TOKEN_SCORES](context({"token_weights": how}, influence=influence)).inputs

    ratio, influence = TokenWeights.likelihood_ratio, TokenWeights.influence
    assert found(ratio)["start"] == "s" and "start" not in found(influence)
    assert found(ratio) == found(ratio, params=ParameterSet.mlp) == found(ratio, k=9)
    assert found(influence) != found(influence, params=ParameterSet.mlp)
    assert found(influence) == found(influence, k=9, tokens_per_batch=9, regex="x", seed=5)
