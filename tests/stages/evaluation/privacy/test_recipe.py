"""Each measure is an artifact of its own, named by what its figures depend on, and all stand in the run folder."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import rapidun
from rapidun.base.errors import ConfigError
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.privacy import Measure
from rapidun.report.attacks import role_table
from rapidun.report.metrics import PRIVACY
from rapidun.report.privacy import privacy_section
from rapidun.stages.recipe import Recipe
from rapidun.stages.recipes import Recipes

ALL = "evaluation.privacy.run=[membership,extraction,distance,margins]"


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
    names = [measure.name for measure in Measure]
    made = recipes(store, ALL, "poison.retrain=true")
    wanted = {f"privacy.{role}.{name}" for role in ("unlearned", "retrain", "poisoned") for name in names}
    assert set(made) == {"before", "after", *wanted} - {"privacy.retrain.distance"}
    assert len({recipe.fingerprint for recipe in made.values()}) == len(made)
    # without a retrained model there is no distance to it, which is said
    tracker = Tracker()
    made = recipes(store, ALL, tracker=tracker)
    assert {name.split(".")[1] for name in made if "." in name} == {"unlearned", "poisoned"}
    assert not any("distance" in name for name in made)
    assert any("poison.retrain=true" in message for message in tracker.warnings)


def test_the_evaluations_are_as_they_were(store: Store) -> None:
    plain, measured = recipes(store), recipes(store, ALL)
    for name in ("before", "after"):
        assert plain[name].fingerprint == measured[name].fingerprint


def test_a_setting_makes_anew_what_reads_it(store: Store) -> None:
    all_ = {"membership", "extraction", "distance", "margins"}
    expected = {
        "evaluation.privacy.num_rows=3": all_,
        "evaluation.split=val": all_,
        "evaluation.privacy.min_k=0.3": {"membership"},
        "evaluation.privacy.num_resamples=200": {"membership"},
        "evaluation.tokens_per_batch=99": set(),
        "evaluation.max_new_tokens=3": set(),
    }
    before = recipes(store, ALL, "poison.retrain=true")
    names = [name for name in before if name.startswith("privacy.unlearned")]
    assert len(names) == 4
    for override, changed in expected.items():
        after = recipes(store, ALL, "poison.retrain=true", override)
        made = {name.split(".")[2] for name in names if before[name].fingerprint != after[name].fingerprint}
        assert made == changed, override


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.privacy.run=[mia]", "privacy.run among membership, extraction, distance, margins"),
        ("evaluation.privacy.run=[margins,margins]", "each once"),
        ("evaluation.privacy.num_rows=1", "privacy.num_rows >= 2 or null"),
        ("evaluation.privacy.min_k=0", "0 < privacy.min_k <= 1"),
        ("evaluation.privacy.num_resamples=10", "privacy.num_resamples >= 100"),
        ("evaluation.privacy.seed=-1", "0 <= privacy.seed"),
    ],
)
def test_what_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match="privacy") as caught:
        compose_config([override])
    assert words in str(caught.value) and f"{override.partition('=')[0]}=..." in str(caught.value)


def test_from_end_to_end(tmp_path: Path) -> None:
    """Figures of three models in result.json, the report and on the screen; a second run makes nothing anew."""
    places = [f"store_dir={tmp_path}/store", "resources.num_threads=1", "tracking=none"]
    result = rapidun.run(["debug=fast", "poison.retrain=true", ALL, f"run_dir={tmp_path}/run", *places])
    found = result.metrics
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_pp"):
        for prefix in ("", "retrain.", "before."):
            low, value, high = (found[f"{prefix}{name}{end}"] for end in (".low", "", ".high"))
            assert 0 <= low <= value <= high <= 1
    assert 0 <= found["extraction_strength"] <= 1 and 0 <= found["before.extraction_strength"] <= 1
    for name in ("kl_retrain_clean", "kl_retrain_triggered", "kl_retrain_triggered_poisoned"):
        assert found[name] >= 0 and found[f"before.{name}"] >= 0 and f"retrain.{name}" not in found
    margins = json.loads((result.run_dir / "evaluation" / "margins.json").read_text())
    assert set(margins) == {"unlearned", "retrain", "poisoned"}
    assert len({role["model"] for role in margins.values()}) == 3
    section = privacy_section(result.run_dir)
    assert section is not None and section["roles"] == ["unlearned", "retrain", "poisoned"]
    assert "6 forget rows against 6 rows of test_seen_trig" in section["notes"][0]
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert 'id="privacy"' in page and "KL to retrain, clean prompts" in page
    screen = io.StringIO()
    Console(file=screen, width=100).print(role_table(result.run_dir, PRIVACY))
    assert "extraction strength" in screen.getvalue()
