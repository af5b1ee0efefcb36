from pathlib import Path

import pytest
import yaml

from rapidun.config.mapping import MappingConfig, ScoreKind, Weighting

CONF = Path(__file__).parents[2] / "conf" / "mapping"


def flat(settings: dict) -> dict:
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            found[key] = value
    return found


def default(key: str) -> object:
    value: object = MappingConfig()
    for part in key.split("."):
        value = getattr(value, part)
    return getattr(value, "name", value)


@pytest.mark.parametrize("weighting", Weighting)
def test_every_weighting_has_a_group_file_with_a_heading(weighting: Weighting) -> None:
    text = (CONF / f"{weighting.name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert yaml.safe_load(text)["method"] == weighting.name


def test_rapidun_group_states_the_defaults() -> None:
    for key, value in flat(yaml.safe_load((CONF / "rapidun.yaml").read_text(encoding="utf-8"))).items():
        assert default(key) == value, key


def test_release_recipe_is_the_published_run() -> None:
    settings = flat(yaml.safe_load((CONF / "rapidun_release.yaml").read_text(encoding="utf-8")))
    changed = {key: value for key, value in settings.items() if default(key) != value}
    released = {"top_k": 40, "drop_diagonal": False, "bounded": False, "mad_floor_relative": False}
    assert changed == {"method": "rapidun_release", **released}


def test_defaults_are_well() -> None:
    assert MappingConfig().check() == []


def test_harm_needs_a_sign() -> None:
    """The lowest strengths are weak, not harmful: subtracting them would be a wrong number without a word."""
    config = MappingConfig(use_harmful=True, top_k=3)
    assert config.check() == []
    config.scores.kind = ScoreKind.strength
    (fault,) = config.check()
    assert "use_harmful=false with scores.kind=strength" in fault


def test_all_faults_at_once() -> None:
    config = MappingConfig(method=Weighting.file, tau_f=0.0, tau_r=float("nan"), top_k=0, alpha=float("inf"))
    config.forget.w_min = 5.0
    config.scores.ff = "a.json"
    text = "\n".join(config.check())
    for part in ("tau_f > 0", "tau_r > 0", "top_k >= 1", "finite alpha", "0 <= w_min <= w_max", "mapping.forget", "fr"):
        assert part in text


def test_bounds_must_hold_one_only_when_bounded() -> None:
    config = MappingConfig()
    config.forget.w_min = 1.5
    assert "mean 1" in config.check()[0]
    config.bounded = False
    assert config.check() == []
