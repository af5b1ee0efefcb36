"""Sections of the objectives' hyperparameters: what is checked, what a fingerprint holds, what is said to be unread."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from rapidun.base.errors import ConfigError
from rapidun.config.cells import compose_cells
from rapidun.config.compose import compose_config, compose_run
from rapidun.config.objectives import Divergence
from rapidun.config.plain import from_plain, plain
from rapidun.config.unlearning import Objective, UnlearningConfig

FILES = sorted((Path(__file__).parents[2] / "conf" / "unlearning").glob("*.yaml"))
SECTIONS = [one.name for one in Objective if one.traits.section]


def settings(**given: Any) -> dict[str, Any]:
    """What a fingerprint has of the section."""
    cfg = UnlearningConfig(**given)
    read = plain(cfg.as_read)
    return {name: value for name, value in read.items() if name not in cfg.idle}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_preset_sets_what_its_objective_reads_and_says_source_and_cost(file: Path) -> None:
    text = file.read_text()
    held = yaml.safe_load(text)
    one = Objective[held["objective"]]
    assert not set(held) & set(one.traits.unread)
    assert set(held) & set(SECTIONS) <= {one.name}
    head = " ".join(line for line in text.splitlines() if line.startswith("#"))
    if one.traits.section:
        assert "arXiv" in head and "Cost" in head
    if file.stem == one.name and one.traits.section:
        # the preset of that name has the defaults: what the authors published (that of an edit leaves to a model file
        # what that may set)
        defaults = plain(UnlearningConfig())[one.name]
        assert held.get(one.name, {}).items() <= defaults.items()
        assert one.traits.edits or held[one.name].keys() == defaults.keys()


def test_every_objective_is_a_preset() -> None:
    assert {one.name for one in Objective} <= {file.stem for file in FILES}
    assert set(SECTIONS) <= {one.name for one in fields(UnlearningConfig)}


def test_published_settings_that_differ_are_presets() -> None:
    """All in one sweep, which composes them as runs would."""
    names = ("simnpo_tofu", "simnpo_muse", "wga_open_unlearning", "rmu_zephyr")
    tofu, muse, wga, rmu = (cell.cfg.unlearning for cell in compose_cells([f"unlearning={','.join(names)}"]))
    assert (tofu.simnpo.beta, tofu.forget_coeff) == (2.5, 0.1375)
    assert (muse.simnpo.beta, muse.forget_coeff) == (0.7, 1.0)
    assert (wga.objective, wga.wga.beta) == (Objective.wga, 1.0)
    assert (rmu.rmu.steering_coeff, rmu.retain_coeff) == (6.5, 1200.0)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_fingerprint_holds_the_section_of_its_own_objective_alone(name: str) -> None:
    one = Objective[name]
    found = settings(objective=one)
    assert set(found) & {*SECTIONS, *one.traits.unread} == {name}
    assert not set(settings(objective=Objective.rapidun)) & set(SECTIONS)


def test_what_is_not_read_leaves_the_fingerprint_alone() -> None:
    before = settings(objective=Objective.npo)
    for change in ({"ascent_alpha": 3.0}, {"descent_beta": 9.0}, {"idk_response": "No."}):
        assert settings(objective=Objective.npo, **change) == before
    assert settings(objective=Objective.ga, descent_beta=9.0) == settings(objective=Objective.ga)
    # those of the first five stood in fingerprints before, at their defaults
    assert settings(objective=Objective.ga)["descent_beta"] == 0.5
    changed = UnlearningConfig(objective=Objective.npo)
    changed.simnpo.beta = 1.0
    assert {name: value for name, value in plain(changed.as_read).items() if name not in changed.idle} == before
    changed.npo.beta = 0.2
    assert {name: value for name, value in plain(changed.as_read).items() if name not in changed.idle} != before
    assert "forget_coeff" not in before
    assert settings(objective=Objective.npo, forget_coeff=0.5)["forget_coeff"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["unlearning=simnpo", "unlearning.npo.beta=0.2"], "unlearning.npo.beta: typed, but nothing reads it"),
        (["unlearning=npo", "unlearning.ascent_alpha=2"], "unlearning.objective=npo"),
        (["unlearning=ceu", "unlearning.retain_coeff=2"], "unlearning.objective=ceu"),
        (["unlearning=rmu", "unlearning.retain_loss=kl"], "unlearning.objective=rmu"),
        (["unlearning.npo.beta=0.2"], "unlearning.objective=rapidun"),
        (
            ["unlearning=repselect", "unlearning.repselect.learning_rate=1"],
            "nothing reads it with unlearning.repselect.budget=",
        ),
        (
            ["unlearning=repselect", "unlearning.repselect.budget=null", "unlearning.repselect.spend=0.9"],
            "unlearning.repselect.budget=null",
        ),
        (["unlearning=influence_step", "unlearning.influence_step.regex=x"], "influence_step.params=all_linear"),
    ],
    ids=str,
)
def test_an_override_that_the_objective_does_not_read_is_said(overrides: list[str], word: str) -> None:
    warnings = compose_run(overrides).warnings
    assert len(warnings) == 1 and word in warnings[0], warnings


@pytest.mark.parametrize(
    ("name", "override"),
    [("rmu", "rmu.layer=1"), ("flat", "idk_response=No."), ("repselect", "repselect.lora.r=4")],
)
def test_an_override_of_its_own_section_is_read(name: str, override: str) -> None:
    assert compose_run([f"unlearning={name}", f"unlearning.{override}"]).warnings == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("npo.beta", 0.0), ("simnpo.beta", -1.0), ("simnpo.margin", math.nan), ("dpo.beta", 0.0), ("rmu.layer", -1),
        ("rmu.steering_coeff", -2.0), ("rmu.seed", -1), ("undial.beta", -1.0), ("wga.beta", -1.0), ("satimp.b1", -1.0),
        ("satimp.b2", -1.0), ("ceu.k", -1), ("pdu.lambda_init", -1.0), ("pdu.dual_step_size", math.inf),
        ("crow.alpha", -1.0), ("crow.epsilon", -1.0), ("forget_coeff", -1.0), ("retain_coeff", math.nan),
    ],
)  # fmt: skip
def test_wrong_hyperparameters_are_named(key: str, value: float) -> None:
    cfg = UnlearningConfig()
    section, _, name = key.rpartition(".")
    setattr(getattr(cfg, section) if section else cfg, name, value)
    [fault] = cfg.check()
    assert f"pass unlearning.{key}=" in fault and str(value) in fault


def test_sections_survive_json_and_choices_are_named() -> None:
    cfg = compose_config(["unlearning=flat", "unlearning.flat.divergence=js"])
    assert from_plain(plain(cfg)).unlearning.flat.divergence is Divergence.js
    with pytest.raises(ConfigError, match="tv, kl, js, pearson"):
        compose_config(["unlearning.flat.divergence=hellinger"])
