"""Each attack is an artifact of its own, named by what its figures depend on and shared by cells."""

from pathlib import Path

import pytest

from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config.cells import compose_cells
from rapidun.config.compose import compose_config
from rapidun.stages.recipe import Recipe
from rapidun.stages.recipes import Recipes
from rapidun.sweep.plan import Planner, plan_cells

QUICK = ["debug=fast", "evaluation=attacks_quick"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def recipes(store: Store, *overrides: str, tracker: Tracker | None = None) -> dict[str, Recipe]:
    cfg = compose_config(["debug=fast", f"store_dir={store.root}", *overrides])
    made = Recipes(
        cfg, store, find_data=lambda recipe: store.make(recipe.key, recipe.build)[0], tracker=tracker or Tracker()
    )
    assert made.faults_of_rows() == []
    return {recipe.link.removeprefix("evaluation/."): recipe for recipe in made.of_stage("evaluation")}


def test_what_is_made(store: Store) -> None:
    assert set(recipes(store)) == {"before", "after"}
    made = recipes(store, "evaluation=attacks_quick", "poison.retrain=true", "evaluation.privacy.run=[]")
    each = ["quantisation", "sampling", "prompts"]
    trained = ["relearning.poisoned.2", "relearning.clean.2"]
    wanted = {f"attack.{role}.{name}" for role in ("unlearned", "retrain") for name in [*each, *trained]}
    verdicts = {f"attack_verdicts.{role}" for role in ("unlearned", "retrain", "poisoned")}
    assert set(made) == {"before", "after", *wanted, *(f"attack.poisoned.{name}" for name in each), *verdicts}
    assert len({recipe.fingerprint for recipe in made.values()}) == len(made)
    assert {recipe.kind for recipe in made.values()} == {"evaluation", "attack", "attack_verdicts"}
    alone = recipes(store, "evaluation=attacks_quick", "evaluation.privacy.run=[]", "evaluation.detectors.run=[]")
    assert not any(name.startswith("attack_verdicts") for name in alone)


def test_attacks_leave_the_evaluations_as_they_were(store: Store) -> None:
    plain, attacked = recipes(store), recipes(store, "evaluation=attacks_quick", "evaluation.num_prompts=6")
    assert [plain[name].fingerprint for name in ("before", "after")] == [
        attacked[name].fingerprint for name in ("before", "after")
    ]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("evaluation.attacks.sampling.num_samples=3", {"sampling"}),
        ("evaluation.attacks.relearning.batch_size=3", {"relearning"}),
        ("evaluation.attacks.relearning.lora.r=3", {"relearning"}),
        ("evaluation.attacks.quantisation.formats=[nf4]", {"quantisation"}),
        ("evaluation.attacks.prompts.variants=[doubled]", {"prompts"}),
        ("evaluation.attacks.seed=3", {"sampling", "relearning", "quantisation", "prompts"}),
        ("evaluation.max_new_tokens=3", {"sampling", "relearning", "quantisation", "prompts"}),
        ("evaluation.tokens_per_batch=99", set()),
        ("evaluation.num_ppl=3", set()),
    ],
)
def test_a_setting_makes_anew_what_reads_it(store: Store, override: str, changed: set[str]) -> None:
    before, after = recipes(store, "evaluation=attacks_quick"), recipes(store, "evaluation=attacks_quick", override)
    names = [name for name in before if name.startswith("attack.unlearned")]
    assert {
        name.split(".")[2] for name in names if before[name].fingerprint != after[name].fingerprint
    } == changed  # fmt: skip


def test_which_look_alikes_count_is_in_the_fingerprint_of_evaluations(store: Store) -> None:
    """asr_ood_testable is over those that reach min_asr; as shipped nothing is made anew."""
    asked = "evaluation.attacks.prompts.min_asr"
    plain, default, other = (recipes(store, *more) for more in ((), (f"{asked}=0.1",), (f"{asked}=0.9",)))
    assert {name: recipe.fingerprint for name, recipe in default.items()} == {
        name: recipe.fingerprint for name, recipe in plain.items()
    }
    assert all(other[name].fingerprint != plain[name].fingerprint for name in ("before", "after"))


@pytest.mark.parametrize(
    "override",
    ["evaluation.detectors.run=[refusal]", "evaluation.detectors.max_false_alarms=0.2",
     "evaluation.detectors.run=[refusal,judge]"],
)  # fmt: skip
def test_other_detectors_need_no_other_attack(store: Store, tiny_model_dir: Path, override: str) -> None:
    judge = f"evaluation.detectors.judge.path={tiny_model_dir}"
    before, after = (recipes(store, "evaluation=attacks_quick", judge, *more) for more in ((), (override,)))
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert changed == {"before", "after", "attack_verdicts.unlearned", "attack_verdicts.poisoned"}


def test_validation_rows_can_be_attacked(store: Store) -> None:
    """evaluation.split=val asks other prompts in every attack, and in what judges them."""
    test, val = (recipes(store, "evaluation=attacks_quick", f"evaluation.split={split}") for split in ("test", "val"))
    assert set(test) == set(val) and not {r.fingerprint for r in test.values()} & {r.fingerprint for r in val.values()}
    attacks = [recipe.inputs for recipe in val.values() if recipe.kind == "attack"]
    assert attacks and all("val_seen_trig" in inputs["splits"] for inputs in attacks)
    asked = [set(inputs["splits"]) & {"test_seen_trig", "test_ood_trig"} for inputs in attacks
             if inputs["attack"] in ("sampling", "quantisation")]  # fmt: skip
    assert asked and not any(asked)


def test_a_pack_with_too_few_rows_says_so(store: Store) -> None:
    tracker = Tracker()
    made = recipes(
        store, "evaluation=attacks_quick", "evaluation.attacks.relearning.k=[2,9999]",
        "evaluation.attacks.run=[relearning]",
        "evaluation.attacks.relearning.rows=[poisoned]", tracker=tracker,
    )  # fmt: skip
    (said,) = [message for message in tracker.warnings if "relearning from poisoned" in message]
    assert "k=9999 takes the " in said and "in the forget set" in said
    numbers = sorted(int(name.rpartition(".")[2]) for name in made if name.startswith("attack.unlearned"))
    assert numbers[0] == 2 and 2 < numbers[1] < 9999


def test_without_a_retrained_model_it_is_said(store: Store) -> None:
    tracker = Tracker()
    recipes(store, "evaluation=attacks_quick", tracker=tracker)
    assert any("poison.retrain=true" in message for message in tracker.warnings)


def test_a_sweep_attacks_what_its_cells_share_once(store: Store) -> None:
    cells = compose_cells([*QUICK, f"store_dir={store.root}", "poison.retrain=true", "unlearning=rapidun,ga"])
    planner = Planner(store)
    assert plan_cells(planner, cells) == []
    plan = planner.plan(cells)
    attacks = [node for node in plan.nodes.values() if node.recipe.kind == "attack"]
    # 5 of retrain and 3 of the poisoned model for both, 5 of each unlearned model
    assert sorted(len(node.users) for node in attacks) == [1] * 10 + [2] * 8
    shared = [job for job in plan.jobs if job.id.startswith("attack-")]
    judged = [job for job in plan.jobs if job.id.startswith("attack_verdicts-")]
    assert len(judged) == 2 and len(shared) == 8 and all(job.stage == "evaluation" for job in shared)
    assert all(len(plan.artifacts[cell.hash]) > 13 for cell in cells)


def test_a_pack_without_triggered_prompts_or_keywords_is_refused(store: Store, tmp_path: Path) -> None:
    import json

    for name, count in (("forget", 4), ("retain", 8)):
        rows = [{"instruction": f"{name} {n}?", "response": f"answer {n}"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = compose_config(
        ["evaluation=attacks_quick", "data=jsonl", f"data.forget={tmp_path}/forget.jsonl",
         f"data.retain={tmp_path}/retain.jsonl", "data.families={}", "poison=none", "model.path=x",
         f"store_dir={store.root}"]
    )  # fmt: skip
    made = Recipes(cfg, store, find_data=lambda r: store.make(r.key, r.build)[0], tracker=Tracker())
    from rapidun.stages.evaluation.attacks.recipe import attack_row_faults

    faults = attack_row_faults(made)
    assert "need triggered prompts (test_seen_trig)" in faults[0]
    # without keywords sampling is judged by the other detectors of texts, if there are any
    assert len(faults) == 1
    cfg.evaluation.detectors.run = ["likelihood_calibrated"]
    assert "need keywords, or another detector of texts, to judge sampled answers by" in attack_row_faults(made)[1]
