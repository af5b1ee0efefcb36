"""Swept keys as optuna's distributions."""

import pytest

from rapidun.base.errors import ConfigError
from rapidun.config.cells import search_space
from rapidun.sweep.tuning.space import Space

optuna = pytest.importorskip("optuna")
TUNER = "hydra/sweeper=rapidun_optuna"


def space(*overrides: str) -> Space:
    return Space(search_space([TUNER, *overrides]).axes)


def test_each_kind_of_axis_has_its_distribution() -> None:
    made = optuna.distributions
    found = space(
        "mapping=rapidun,uniform", "mapping.tau_f=interval(0.1,2)", "mapping.tau_r=tag(log,interval(0.1,10))",
        "unlearning.max_steps=int(interval(1,9))", "seed=range(0,10,2)", "mapping.alpha=range(0.5,2,0.5)",
        "mapping.top_k=null,3",
    ).distributions  # fmt: skip
    assert found == {
        "mapping": made.CategoricalDistribution(("rapidun", "uniform")),
        "mapping.tau_f": made.FloatDistribution(0.1, 2.0),
        "mapping.tau_r": made.FloatDistribution(0.1, 10.0, log=True),
        "unlearning.max_steps": made.IntDistribution(1, 9),
        "seed": made.IntDistribution(0, 8, step=2),
        "mapping.alpha": made.FloatDistribution(0.5, 1.5, step=0.5),
        "mapping.top_k": made.CategoricalDistribution(("null", "3")),
    }


def test_values_become_overrides() -> None:
    """A range gives the value as a grid would spell it (Hydra adds up: 0.1 + 0.1 + 0.1), an interval six digits."""
    found = space("mapping.tau_f=range(0.1,0.6,0.1)", "mapping.tau_r=interval(0.1,0.1234567)", "mapping=uniform,random")
    params = {"mapping.tau_f": 0.3, "mapping.tau_r": 0.11111111111, "mapping": "random"}
    row, labels = found.row(params)
    assert row == ["mapping.tau_f=0.30000000000000004", "mapping.tau_r=0.111111", "mapping=random"]
    assert labels == {"mapping.tau_f": "0.30000000000000004", "mapping.tau_r": "0.111111", "mapping": "random"}
    assert found.values(params) == {"mapping.tau_f": 0.1 + 0.1 + 0.1, "mapping.tau_r": 0.111111, "mapping": "random"}
    # rounding does not carry a value out of its bounds
    assert found.values({"mapping.tau_r": 0.1234567}) == {"mapping.tau_r": 0.1234567}


def test_probes_lie_inside() -> None:
    found = space("mapping.tau_f=tag(log,interval(0.1,10))", "seed=range(5,0,-2)", "mapping=uniform,random,rapidun")
    middle, low, high = found.probes()
    assert middle == {"mapping.tau_f": pytest.approx(1.0), "seed": 3, "mapping": "random"}
    assert low == {"mapping.tau_f": 0.1, "seed": 1, "mapping": "uniform"}
    assert high == {"mapping.tau_f": 10.0, "seed": 5, "mapping": "rapidun"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mapping.tau_f=interval(2,1)", "need interval(low,high) with low < high, got interval(2.0,1.0)"),
        ("mapping.tau_f=tag(log,interval(0,1))", "need low > 0 on a logarithmic scale"),
        ("mapping.tau_f=tag(log,range(1,5))", "only intervals have a logarithmic scale"),
        ("mapping=glob(nothing*)", "need at least one value"),
        ("mapping.tau_f=1", "need a key to search, got none"),
    ],
)
def test_what_cannot_be_searched_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace(")", r"\)")):
        space(override)
