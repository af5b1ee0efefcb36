"""The stage's settings and the files of its config group."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rapidun.config.influence import (
    OWN_SETTINGS,
    InfluenceConfig,
    InfluenceMethod,
    ParameterSet,
    Precondition,
)
from rapidun.config.plain import plain

GROUP = Path(__file__).resolve().parents[2] / "conf" / "influence"
# files that are no method of their own
PRESETS = {"lora": "exact", "contrast": "sketch"}


@pytest.mark.parametrize("name", sorted(path.stem for path in GROUP.glob("*.yaml")))
def test_files_fit_the_schema(name):
    merged = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(InfluenceConfig), OmegaConf.load(GROUP / f"{name}.yaml"))
    )
    assert isinstance(merged, InfluenceConfig)
    assert merged.check() == []
    assert merged.method.name == PRESETS.get(name, name)
    assert merged.params is (ParameterSet.lora if name == "lora" else ParameterSet.all_linear)


def test_every_method_has_a_file_and_its_settings():
    assert {path.stem for path in GROUP.glob("*.yaml")} == {method.name for method in InfluenceMethod} | set(PRESETS)
    assert set(OWN_SETTINGS) == set(InfluenceMethod)
    assert {name for names in OWN_SETTINGS.values() for name in names} <= set(plain(InfluenceConfig()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "tensorsketch", "buckets": 1000}, "buckets a power of two, got buckets=1000"),
        ({"method": "tensorsketch", "buckets": 0}, "buckets a power of two, got buckets=0"),
        ({"method": "factored", "p": 0}, "p >= 1 and q >= 1"),
        ({"method": "rapidgrad", "k": 1000}, "k to divide pad_multiple"),
        ({"method": "rapidgrad", "num_shuffles": 0}, "num_shuffles >= 1"),
        ({"method": "bm25"}, "score=dot with method=bm25"),
        ({"method": "repsim", "precondition": Precondition.kfac}, "precondition=none with method=repsim"),
    ],
)
def test_faults_of_one_method(settings, words):
    """Each is a fault of that method only."""
    settings["method"] = InfluenceMethod[settings["method"]]
    faults = InfluenceConfig(**settings).check()
    assert len(faults) == 1 and words in faults[0]
    assert InfluenceConfig(**settings | {"method": InfluenceMethod.exact}).check() == []


def test_faults_of_the_preconditioner():
    faults = InfluenceConfig(
        precondition=Precondition.ekfac, params=ParameterSet.embeddings, damping_factor=0.0
    ).check()
    assert len(faults) == 2 and "params=embeddings" in faults[0] and "damping_factor > 0" in faults[1]
    assert InfluenceConfig(damping_factor=0.0).check() == []


def test_all_faults_come_together():
    faults = InfluenceConfig(k=0, tokens_per_batch=0, memory_gb=0, params=ParameterSet.regex).check()
    assert len(faults) == 4
    assert any("influence.regex" in fault for fault in faults)
    assert len(InfluenceConfig(params=ParameterSet.regex, regex="(").check()) == 1
