"""The stage's settings and the files of its config group."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rapidun.influence.config import InfluenceConfig, InfluenceMethod, ParameterSet

GROUP = Path(__file__).resolve().parents[2] / "conf" / "influence"


@pytest.mark.parametrize("name", ["exact", "sketch", "lora"])
def test_files_fit_the_schema(name):
    merged = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(InfluenceConfig), OmegaConf.load(GROUP / f"{name}.yaml"))
    )
    assert isinstance(merged, InfluenceConfig)
    assert merged.check() == []
    assert merged.method is (InfluenceMethod.sketch if name == "sketch" else InfluenceMethod.exact)
    assert merged.params is (ParameterSet.lora if name == "lora" else ParameterSet.all_linear)


def test_all_faults_come_together():
    faults = InfluenceConfig(k=0, tokens_per_batch=0, memory_gb=0, params=ParameterSet.regex).check()
    assert len(faults) == 4
    assert any("influence.regex" in fault for fault in faults)
    assert len(InfluenceConfig(params=ParameterSet.regex, regex="(").check()) == 1
