"""Settings of the attacks: off by default, all together in their presets, refused with every fault at once."""

import pytest
import yaml

from rapidun.base.errors import ConfigError
from rapidun.config.attacks import Attack, AttacksConfig
from rapidun.config.compose import compose_config, compose_run
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.training import Target


def test_none_by_default_all_in_the_presets() -> None:
    assert compose_config([]).evaluation.attacks.asked == []
    for preset in ("attacks", "attacks_quick"):
        cfg = compose_config([f"evaluation={preset}"]).evaluation
        assert cfg.attacks.asked == list(Attack)
        # what the model file sets for evaluation holds here too
        assert cfg.max_new_tokens == 24
    chosen = compose_config(["evaluation=attacks", "evaluation.attacks.run=[prompts,sampling]"]).evaluation.attacks
    assert chosen.asked == [Attack.sampling, Attack.prompts]


@pytest.mark.parametrize(("target", "rate"), [("lora", 2e-4), ("full", 2e-5)])
def test_the_learning_rate_follows_from_what_trains(target: str, rate: float) -> None:
    prefix = "evaluation.attacks.relearning"
    overrides = ["evaluation=attacks", "model=smollm2_135m", f"{prefix}.target={target}"]
    relearning = compose_config([*overrides, "model.path=x"]).evaluation.attacks.relearning
    assert relearning.target is Target[target]
    assert relearning.optimiser.learning_rate == rate
    assert (relearning.optimiser.max_steps, relearning.optimiser.save_steps) == (100, 10)
    given = compose_config([*overrides, "model.path=x", f"{prefix}.learning_rate=0.1"]).evaluation.attacks.relearning
    assert given.optimiser.learning_rate == 0.1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run=[prompt]", "attacks.run among relearning, quantisation, sampling, prompts"),
        ("run=[prompts,prompts]", "each once"),
        ("num_prompts=0", "attacks.num_prompts >= 1 or null"),
        ("relearning.k=[5,0]", "attacks.relearning.k of numbers >= 1"),
        ("relearning.k=[]", "attacks.relearning.k"),
        ("relearning.rows=[bad]", "attacks.relearning.rows among poisoned, clean"),
        ("relearning.learning_rate=0", "attacks.relearning.learning_rate > 0 or null"),
        ("relearning.eval_steps=0", "attacks.relearning.eval_steps >= 1"),
        ("relearning.lora.r=0", "attacks.relearning.lora.r >= 1"),
        ("quantisation.formats=[fp8]", "attacks.quantisation.formats among nf4, int8"),
        ("sampling.num_samples=0", "attacks.sampling.num_samples >= 1"),
        ("sampling.temperatures=[0.8,0]", "attacks.sampling.temperatures > 0"),
        ("prompts.variants=[plain]", "attacks.prompts.variants among doubled"),
        ("prompts.min_asr=0", "0 < attacks.prompts.min_asr <= 1"),
    ],
)
def test_what_is_refused(override: str, words: str) -> None:
    key, _, value = override.partition("=")
    attacks = AttacksConfig(run=[attack.name for attack in Attack])
    *sections, name = key.split(".")
    section: object = attacks
    for part in sections:
        section = getattr(section, part)
    setattr(section, name, yaml.safe_load(value))
    (fault,) = EvaluationConfig(attacks=attacks).check()
    assert words in fault and f"evaluation.attacks.{key}=..." in fault


def test_all_faults_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["evaluation=attacks", "evaluation.attacks.run=[x]", "evaluation.attacks.prompts.min_asr=2"])
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["evaluation.attacks.sampling.num_samples=3"], "evaluation.attacks.run=[]"),
        (
            ["evaluation=attacks", "evaluation.attacks.run=[prompts]", "evaluation.attacks.sampling.num_samples=3"],
            "[prompts]",
        ),
        (
            [
                "evaluation=attacks",
                "evaluation.attacks.relearning.target=full",
                "evaluation.attacks.relearning.lora.r=3",
            ],
            "target=full",
        ),
    ],
)
def test_a_setting_that_no_attack_reads_is_said(overrides: list[str], why: str) -> None:
    (warning,) = compose_run(overrides).warnings
    assert overrides[-1].partition("=")[0] in warning and why in warning
