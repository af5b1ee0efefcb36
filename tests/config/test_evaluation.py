import pytest

from rapidun.config.evaluation import EvaluationConfig


def test_defaults_are_sound() -> None:
    assert EvaluationConfig().check() == []
    assert EvaluationConfig(num_prompts=None, num_ppl=None).check() == []


def test_all_faults_at_once() -> None:
    faults = EvaluationConfig(num_prompts=0, max_new_tokens=0, min_keywords=0).check()
    assert len(faults) == 3
    assert faults[0] == (
        "evaluation: need num_prompts >= 1 or null, got num_prompts=0. "
        "Change conf/evaluation/*.yaml or pass evaluation.num_prompts=..."
    )


@pytest.mark.parametrize(
    "name", ["num_prompts", "num_ppl", "num_calibration", "min_keywords", "max_new_tokens", "tokens_per_batch"]
)
def test_each_count_is_checked(name: str) -> None:
    assert name in EvaluationConfig(**{name: 0}).check()[0]
