"""Resolved configurations as YAML and JSON, and back."""

import json
from typing import Any

import pytest
from omegaconf import OmegaConf

from rapidun.base.errors import ConfigError
from rapidun.config.compose import compose_config
from rapidun.config.data import TriggerFamilyConfig
from rapidun.config.model import Quantisation
from rapidun.config.paths import config_groups
from rapidun.config.plain import config_yaml, from_plain, plain
from rapidun.config.run import RunConfig

ODD = [
    "1e3",
    "1_0",
    "0x1F",
    "yes",
    "null",
    "~",
    "",
    " a ",
    "#x",
    "a: b",
    "a\nb",
    "ü \u202e",
    "${seed}x",
    "-",
    "12:30",
    ".5",
]
TUNED = [f"mapping={name}" for name in config_groups()["mapping"] if name != "file"]


def odd() -> RunConfig:
    cfg = compose_config(
        ["poison=lora", "model.path=m", "model.quantisation=8bit", "mapping.top_k=3", "cluster.sbatch.nice=100"]
    )
    cfg.data.families["D"] = TriggerFamilyConfig(seen=[text for text in ODD if text.strip()])
    cfg.data.name = ""
    cfg.mapping.tau_f = 1e-7
    cfg.sweep.zip = [["a", "b"], ["c"]]
    cfg.data.families["1e3"] = cfg.data.families.pop("A_surface")
    return cfg


@pytest.mark.parametrize("override", [*TUNED, "debug=fast", "data.families.D.seen=[x]", "poison.max_steps=7"])
def test_json_and_back_is_the_same_configuration(override: str) -> None:
    cfg = compose_config([override])
    assert from_plain(json.loads(json.dumps(plain(cfg)))) == cfg
    assert config_yaml(cfg) == OmegaConf.to_yaml(OmegaConf.structured(cfg), resolve=True)


def test_odd_texts_and_numbers_survive_json_and_yaml() -> None:
    cfg = odd()
    again = from_plain(json.loads(json.dumps(plain(cfg))))
    assert again == cfg
    assert again.model.quantisation is Quantisation["8bit"]
    assert OmegaConf.to_container(OmegaConf.create(config_yaml(cfg)), resolve=False) == plain(cfg)


def test_what_is_missing_has_its_default_and_whole_numbers_become_floats() -> None:
    cfg = from_plain({"seed": 5, "data": plain(compose_config())["data"], "mapping": {"tau_f": 2}})
    assert (cfg.seed, cfg.mapping.tau_f, type(cfg.mapping.tau_f), cfg.max_length) == (5, 2.0, float, 256)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("sed", 1, ["sed: no such key", "did you mean seed?"]),
        ("mapping.tauf", 1, ["did you mean mapping.tau_f?"]),
        ("data.families.D", {"sen": []}, ["did you mean data.families.D.seen?"]),
        ("seed", "1", ["seed: need a whole number, got '1'"]),
        ("seed", True, ["seed: need a whole number, got True"]),
        ("seed", None, ["seed: need a whole number, got None"]),
        ("seed", 1.5, ["seed: need a whole number, got 1.5"]),
        ("mapping.bounded", 1, ["need true or false, got 1"]),
        ("mapping.tau_f", "x", ["need a number, got 'x'"]),
        ("mapping.tau_f", False, ["need a number, got False"]),
        ("mapping.method", "unifrm", ["one of rapidun", "Did you mean uniform?"]),
        ("mapping.method", 3, ["one of rapidun"]),
        ("mapping.top_k", "x", ["a whole number, or null"]),
        ("mapping", [1], ["mapping: need a section, got [1]"]),
        ("stages", "data", ["need a list such as [a,b]"]),
        ("stages", [1], ["stages: need text, got 1"]),
        ("data.families", [], ["need entries such as {name: ...}"]),
        ("cluster.sbatch", {"nice": 1}, ["cluster.sbatch.nice: need text, got 1"]),
        ("mapping.tau_r", 0, ["tau_r > 0"]),
    ],
)
def test_wrong_values_are_refused(path: str, value: Any, words: list[str]) -> None:
    values = plain(compose_config())
    section = values
    *above, last = path.split(".")
    for part in above:
        section = section[part]
    section[last] = value
    with pytest.raises(ConfigError) as caught:
        from_plain(values)
    assert len(caught.value.faults) == 1
    for word in words:
        assert word in caught.value.faults[0]


def test_all_faults_come_together_and_no_mapping_is_one() -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain({"sed": 1, "seed": "x", "mapping": {"tau_f": None}})
    assert len(caught.value.faults) == 3
    with pytest.raises(ConfigError, match="the configuration: need a section"):
        from_plain([])


def test_reading_and_writing_need_no_omegaconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 25 ms for the YAML alone."""
    cfg = odd()
    values = plain(cfg)

    def asked(*args: object, **kwargs: object) -> None:
        raise AssertionError("OmegaConf was asked")

    for name in ("create", "structured", "to_yaml", "to_container", "merge"):
        monkeypatch.setattr(OmegaConf, name, asked)
    assert from_plain(values) == cfg
    assert config_yaml(cfg)
