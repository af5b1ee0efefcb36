"""Every number of a configuration is finite, and the fault names its key."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest

from rapidun.base.errors import ConfigError
from rapidun.cli.main import main
from rapidun.config.compose import compose_config
from rapidun.config.keys import hints
from rapidun.config.numbers import number_faults
from rapidun.config.run import RunConfig


def floats(section: Any, above: str = "") -> Iterator[tuple[Any, str, str]]:
    """(section, name, key) of each setting that takes a float, in a configuration with all defaults."""
    for one in fields(section):
        key = f"{above}.{one.name}" if above else one.name
        value = getattr(section, one.name)
        if is_dataclass(value):
            yield from floats(value, key)
        elif hints(type(section))[one.name] in (float, float | None):
            yield section, one.name, key


def test_each_of_them() -> None:
    cfg = RunConfig()
    found = list(floats(cfg))
    assert len(found) > 60
    for section, name, key in found:
        held = getattr(section, name)
        for value in (math.nan, math.inf, -math.inf, 1e200):
            setattr(section, name, value)
            faults = cfg.check()
            assert len(faults) == 1 and faults[0].startswith(f"{key}: need a finite number"), faults
        setattr(section, name, held)


@pytest.mark.parametrize(
    "text",
    [
        "unlearning.learning_rate=inf", "resources.mem_gb=inf", "influence.damping_factor=nan",
        "poison.learning_rate=1e999",
        "unlearning.num_train_epochs=nan", "mapping.forget.w_max=-inf", "model.path=null unlearning.max_grad_norm=nan",
    ],
)  # fmt: skip
@pytest.mark.bad_input
def test_typed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(text.split()) == 2
    key = text.split()[-1].partition("=")[0]
    said = capsys.readouterr().err
    assert key in said and said.startswith("rapidun: "), said


def test_in_lists_and_entries() -> None:
    @dataclass
    class Held:
        shares: list[float]
        phrases: dict[str, Any]

    assert number_faults(Held([1.0, 2.0], {"a": {"b": [3.0]}})) == []
    found = number_faults(Held([1.0, math.nan], {"a": {"b": [math.inf]}}))
    assert [fault.partition(":")[0] for fault in found] == ["shares", "phrases.a.b"]


def test_in_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"unlearning\.learning_rate: need a finite"):
        compose_config(["unlearning.learning_rate=1e300"])
