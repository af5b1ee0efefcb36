from typing import Any

import numpy as np

from rapidun.stages.mapping.diagnostics import (
    describe,
    describe_mapped,
    effective_sample_size,
    file_warnings,
    group_warnings,
    num_distinct,
)
from rapidun.stages.mapping.weights import exp_clip, robust_z
from rapidun.stages.rows.bounded_weights import exp_bounded


def test_effective_sample_size_by_hand() -> None:
    """w = 3, 1: 16 / 10. Equal weights count in full, one row alone as 1."""
    assert effective_sample_size(np.array([3.0, 1.0])) == 1.6
    assert effective_sample_size(np.ones(7)) == 7.0
    assert effective_sample_size(np.array([5.0, 0.0])) == 1.0
    assert effective_sample_size(np.zeros(2)) == 0.0


def test_distinct_weights_up_to_rounding() -> None:
    assert num_distinct(np.array([1.0, 1.0 + 1e-13, 2.0])) == 2


def test_describe() -> None:
    facts = describe(np.array([0.5, 1.5]))
    assert (facts["num_rows"], facts["mean"], facts["min"], facts["max"]) == (2, 1.0, 0.5, 1.5)


def warnings_of(scores: np.ndarray, *, tau: float = 0.7, zero_share: float = 0.0, **changes: Any) -> list[str]:
    standardised = robust_z(scores, mad_floor=1e-3)
    facts = describe_mapped(exp_bounded(standardised.z, tau=tau, low=0.2, high=3.0), standardised)
    return group_warnings(
        {**facts, **changes}, group="forget", tau=tau, w_min=0.2, w_max=3.0, mad_floor=1e-3, zero_share=zero_share
    )


def test_healthy_weights_are_left_alone() -> None:
    assert warnings_of(np.linspace(-1, 1, 40)) == []


def test_saturation_names_the_knob() -> None:
    messages = warnings_of(np.linspace(-1, 1, 40), share_at_w_max=0.38)
    assert messages == [
        "mapping: 38 % of forget weights stand at w_max=3. Raise mapping.tau_f (now 0.7) or raise mapping.forget.w_max"
    ]
    messages = warnings_of(np.linspace(-1, 1, 40), share_at_w_min=0.5)
    assert "50 % of forget weights stand at w_min=0.2" in messages[0] and "lower mapping.forget.w_min" in messages[0]


def test_shares_are_counted() -> None:
    """z = -9, 0, 9, 9 in [0.2, 3], tau 1, clipped before the mean: a quarter at w_min, half at w_max."""
    standardised = robust_z(np.array([-9.0, 0.0, 9.0, 9.0]), mad_floor=1e-3)
    facts = describe_mapped(exp_clip(np.array([-9.0, 0.0, 9.0, 9.0]), tau=1.0, low=0.2, high=3.0), standardised)
    assert (facts["share_at_w_min"], facts["share_at_w_max"]) == (0.25, 0.5)


def test_mad_floor_few_distinct_and_zeros() -> None:
    messages = warnings_of(np.linspace(-1, 1, 40) * 1e-4)
    assert len(messages) == 1 and "mapping.mad_floor=0.001" in messages[0] and "influence.score=cosine" in messages[0]
    messages = warnings_of(np.repeat([-1.0, 0.0, 1.0], 20), tau=2.0, zero_share=0.67)
    assert any("67 % of the scores" in line and "mapping.top_k" in line for line in messages)
    assert any("only 3 distinct weights for 60 forget rows. Raise mapping.top_k" in line for line in messages)


def test_one_row_has_all_the_weight() -> None:
    messages = warnings_of(np.linspace(-1, 1, 40), effective_sample_size=4.2)
    assert messages[0].startswith("mapping: the forget weights count as 4.2 equal rows of 40. Raise mapping.tau_f")


def test_constant_scores_and_single_rows() -> None:
    assert warnings_of(np.full(40, 0.3)) == ["mapping: all forget scores are equal, so that every forget weight is 1"]
    assert warnings_of(np.array([0.3])) == []


def test_weights_of_a_file_should_have_mean_one() -> None:
    assert file_warnings(describe(np.array([0.5, 1.5])), group="retain") == []
    assert "the retain weights of the file have mean 2" in file_warnings(describe(np.full(3, 2.0)), group="retain")[0]
