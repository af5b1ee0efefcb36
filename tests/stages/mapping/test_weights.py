import math

import numpy as np
import pytest

from rapidun.stages.mapping.weights import exp_clip, robust_z
from rapidun.stages.rows.bounded_weights import exp_bounded

RULES = [exp_clip, exp_bounded]


def test_robust_z_by_hand() -> None:
    """0, 1, 2, 3, 10: median 2, deviations 2, 1, 0, 1, 8, MAD 1: z = (S - 2) / 1.4826."""
    result = robust_z(np.array([0.0, 1.0, 2.0, 3.0, 10.0]), mad_floor=1e-3)
    np.testing.assert_allclose(result.z * 1.4826, [-2.0, -1.0, 0.0, 1.0, 8.0], rtol=1e-15)
    assert (result.median, result.scale, result.floor_hit) == (2.0, 1.4826, False)


def test_mad_floor_by_hand() -> None:
    """0, 0, 0, 1: MAD 0, so z = S / 0.5 with a floor of 0.5."""
    result = robust_z(np.array([0.0, 0.0, 0.0, 1.0]), mad_floor=0.5)
    assert result.z.tolist() == [0.0, 0.0, 0.0, 2.0]
    assert result.floor_hit


@pytest.mark.parametrize("n", [1, 2, 3, 40])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_constant_scores_have_z_zero(n: int, value: float) -> None:
    assert robust_z(np.full(n, value), mad_floor=1e-3).z.tolist() == [0.0] * n


def test_exp_clip_by_hand() -> None:
    """z = 0, 10, -10 with tau 1 in [0.5, 3]: u = 1, 3, 0.5, mean 1.5."""
    result = exp_clip(np.array([0.0, 10.0, -10.0]), tau=1.0, low=0.5, high=3.0)
    np.testing.assert_allclose(result.weights, [1 / 1.5, 2.0, 0.5 / 1.5], rtol=1e-15)
    assert result.at_low.tolist() == [False, False, True]
    assert result.at_high.tolist() == [False, True, False]


def test_dividing_by_the_mean_can_leave_the_bounds_and_bounded_cannot() -> None:
    z = np.array([10.0] + [-10.0] * 9)
    assert exp_clip(z, tau=1.0, low=0.5, high=3.0).weights.max() == 3.0 / 0.75
    assert exp_bounded(z, tau=1.0, low=0.5, high=3.0).weights.max() == 3.0


def test_exp_bounded_by_hand() -> None:
    """z = 0, 10: the first stands at 0.5, the second takes the rest, 1.5.

    z = ln 2, 0, 0 in [0.8, 3]: c (2 + 1 + 1) = 3 would give 1.5, 0.75, 0.75, below the bound: 1.4, 0.8, 0.8.
    """
    result = exp_bounded(np.array([0.0, 10.0]), tau=1.0, low=0.5, high=3.0)
    np.testing.assert_allclose(result.weights, [0.5, 1.5], rtol=1e-15)
    result = exp_bounded(np.array([math.log(2), 0.0, 0.0]), tau=1.0, low=0.8, high=3.0)
    np.testing.assert_allclose(result.weights, [1.4, 0.8, 0.8], rtol=1e-15)
    assert result.at_low.tolist() == [False, True, True]


def test_without_touching_a_bound_bounded_is_a_softmax() -> None:
    z = np.random.default_rng(0).uniform(-0.5, 0.5, 30)
    np.testing.assert_allclose(
        exp_bounded(z, tau=1.0, low=0.01, high=100.0).weights, 30 * np.exp(z) / np.exp(z).sum(), rtol=1e-14
    )


@pytest.mark.parametrize("seed", range(60))
def test_bounded_agrees_with_bisection(seed: int) -> None:
    """The oracle halves an interval around ln c two hundred times, in plain Python."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 60))
    z = generator.standard_normal(n) * generator.choice([0.1, 1.0, 10.0])
    if seed % 3 == 0:
        z = np.round(z)  # ties
    tau, low, high = generator.uniform(0.1, 3), generator.uniform(0.01, 0.99), generator.uniform(1.01, 6)

    def at(log_c: float) -> list[float]:
        return [math.exp(min(max(log_c + value / tau, math.log(low)), math.log(high))) for value in z.tolist()]

    bottom, top = -1e4, 1e4
    for _ in range(200):
        middle = (bottom + top) / 2
        if sum(at(middle)) < n:
            bottom = middle
        else:
            top = middle
    result = exp_bounded(z, tau=tau, low=low, high=high)
    np.testing.assert_allclose(result.weights, at((bottom + top) / 2), rtol=0, atol=2e-12)
    assert abs(math.fsum(result.weights) / n - 1) <= 1e-14
    assert result.weights.min() >= low and result.weights.max() <= high
    assert np.all(result.weights[result.at_low] == low) and np.all(result.weights[result.at_high] == high)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tau", [1e-300, 1e-9, 0.01, 0.7, 1e9])
def test_mean_is_one_and_order_is_kept_at_any_temperature(rule, tau: float) -> None:
    z = np.random.default_rng(3).standard_normal(101) * 3
    result = rule(z, tau=tau, low=0.2, high=3.0)
    assert abs(math.fsum(result.weights) / 101 - 1) <= 1e-14
    assert np.all(np.diff(result.weights[np.argsort(z)]) >= 0)
    assert np.all(result.weights > 0)


@pytest.mark.parametrize("rule", RULES)
def test_flat_as_tau_grows(rule) -> None:
    z = np.random.default_rng(4).standard_normal(50)
    spreads = [np.ptp(rule(z, tau=tau, low=0.2, high=3.0).weights) for tau in (0.5, 5.0, 50.0, 1e12)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 1e-10


@pytest.mark.parametrize("rule", RULES)
def test_equal_z_give_weights_of_exactly_one(rule) -> None:
    for n in (1, 2, 7):
        assert rule(np.zeros(n), tau=0.7, low=0.2, high=3.0).weights.tolist() == [1.0] * n


@pytest.mark.parametrize("rule", RULES)
def test_permuting_rows_permutes_weights_bit_for_bit(rule) -> None:
    generator = np.random.default_rng(5)
    z = generator.standard_normal(200) * 2
    order = generator.permutation(200)
    weights = rule(z, tau=0.7, low=0.2, high=3.0).weights
    np.testing.assert_array_equal(rule(z[order], tau=0.7, low=0.2, high=3.0).weights, weights[order])


def test_bounds_that_leave_no_choice() -> None:
    z = np.array([-3.0, 0.0, 5.0])
    for low, high in ((1.0, 3.0), (0.2, 1.0), (1.0, 1.0)):
        assert exp_bounded(z, tau=0.7, low=low, high=high).weights.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="low <= 1 <= high"):
        exp_bounded(z, tau=0.7, low=1.5, high=3.0)


def test_faults_name_the_first_bad_index() -> None:
    for call in (
        lambda z: robust_z(z, mad_floor=1e-3),
        lambda z: exp_clip(z, tau=1.0, low=0.2, high=3.0),
        lambda z: exp_bounded(z, tau=1.0, low=0.2, high=3.0),
    ):
        with pytest.raises(ValueError, match="nan at index 1"):
            call(np.array([0.0, np.nan, np.inf]))
        with pytest.raises(ValueError, match="at least one"):
            call(np.array([]))


def bisected(x: list[float], high: float) -> list[float]:
    """min(c exp(x), high) with mean 1, by bisection on ln c: no numpy, no closed form, no lower bound."""
    below, above = -max(x) - 50.0, -min(x) + 50.0
    for _ in range(400):
        middle = (below + above) / 2
        total = math.fsum(min(high, math.exp(max(-745.0, min(50.0, one + middle)))) for one in x)
        below, above = (middle, above) if total < len(x) else (below, middle)
    return [min(high, math.exp(max(-745.0, min(50.0, one + below)))) for one in x]


@pytest.mark.parametrize("n", [1, 2, 3, 50])
@pytest.mark.parametrize("spread", [0.0, 0.5, 5.0, 300.0])
@pytest.mark.parametrize("high", [1.2, 3.0, 100.0])
def test_bounded_without_a_lower_bound(n: int, spread: float, high: float) -> None:
    z = np.random.default_rng(n).standard_normal(n) * spread
    result = exp_bounded(z, tau=0.7, low=0.0, high=high)
    np.testing.assert_allclose(result.weights, bisected((z / 0.7).tolist(), high), rtol=1e-8, atol=1e-12)
    assert math.fsum(result.weights) / n == pytest.approx(1.0, abs=1e-12)
    assert result.at_low.tolist() == (result.weights == 0).tolist()


def test_bounded_without_a_lower_bound_by_hand() -> None:
    """z = ln 4, 0, 0, high 1.5: c (4 + 1 + 1) = 3 would give 2, 1/2, 1/2, so the first is at 1.5, the others share 1.5.

    z = 0, 1e4: the first has e^-1e4 of the second as long as that may have it all; with high 1.5 it gets the rest.
    """
    found = exp_bounded(np.array([math.log(4), 0.0, 0.0]), tau=1.0, low=0.0, high=1.5)
    np.testing.assert_allclose(found.weights, [1.5, 0.75, 0.75], rtol=1e-14)
    assert exp_bounded(np.array([0.0, 1e4]), tau=1.0, low=0.0, high=2.5).weights.tolist() == [0.0, 2.0]
    found = exp_bounded(np.array([0.0, 1e4]), tau=1.0, low=0.0, high=1.5)
    assert found.weights.tolist() == [0.5, 1.5] and found.at_high.tolist() == [False, True]
    assert exp_bounded(np.array([0.0, 5.0]), tau=1.0, low=0.0, high=1.0).weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("z", [[-1e4, -1e4], [-1e4, 0.0, 3.0], [1e300, -1e300], [0.0]])
def test_clip_without_a_lower_bound(z: list[float]) -> None:
    """u = min(exp(z), 3) as long as float64 holds it; no overflow, no division by 0 where it does not."""
    found = exp_clip(np.array(z), tau=1.0, low=0.0, high=3.0)
    u = [min(math.exp(min(one, 50.0)), 3.0) for one in z]
    expected = [one / (sum(u) / len(u)) for one in u] if sum(u) else [1.0] * len(u)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-13)
    assert found.at_low.tolist() == [one == 0 for one in expected]
