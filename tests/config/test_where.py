"""Expressions that choose cells: what they may say, and that nothing else gets through."""

import pytest

from rapidun.base.errors import ConfigError
from rapidun.config.data import TriggerFamilyConfig
from rapidun.config.mapping import Weighting
from rapidun.config.run import RunConfig
from rapidun.config.where import Where

GROUPS = ["mapping", "model", "debug"]
CHOICES = {"mapping": "rapidun_release", "model": "tiny", "debug": None}


def config() -> RunConfig:
    cfg = RunConfig(seed=3, stages=["data", "poison"])
    cfg.mapping.tau_f, cfg.mapping.tau_r = 0.5, 1.5
    cfg.mapping.method = Weighting.shuffled
    cfg.data.families["D"] = TriggerFamilyConfig(seen=["x"])
    return cfg


def holds(expression: str) -> bool:
    return Where(expression, groups=GROUPS).holds(config(), choices=CHOICES)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("mapping.tau_f <= mapping.tau_r", True),
        ("mapping.tau_f * 3 == mapping.tau_r and not seed > 3", True),
        ("mapping.tau_f < mapping.tau_r < 1.5", False),
        ('mapping.method == "shuffled"', True),
        ('mapping == "rapidun_release"', True),
        ('mapping == "shuffled"', False),
        ("debug is null", True),
        ("debug == None or seed", True),
        ("mapping.bounded == true", True),
        ("mapping.bounded", True),
        ("mapping.top_k is not null and mapping.top_k > 3", False),
        ('mapping.method in ["random", "shuffled"]', True),
        ('"poison" in stages and len(stages) == 2', True),
        ('"D" in data.families and data.families.D.seen == ["x"]', True),
        ("min(seed, 2) + max(1, abs(-4)) == round(6.4)", True),
        ("seed % 2 == 1 and seed // 2 == 1 and 2 ** seed == 8", True),
        ("(1 if seed == 3 else 0) == 0", False),
        ("model.quantisation == 'none'", True),
    ],
)
def test_expressions_say_which_cells_are_kept(expression: str, expected: bool) -> None:
    assert holds(expression) is expected


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("mapping.tauf < 1", ["mapping.tauf: no such key", "did you mean mapping.tau_f?"]),
        ("mapping.method == shuffled", ["shuffled: no such key", 'Text stands in quotes: "shuffled"']),
        ("mapping.forget == 1", ["mapping.forget is a section", "w_min"]),
        ("seed = 3", ["Equal is written =="]),
        ("seed <", ["need an expression"]),
        ("", ["need an expression"]),
        ("seed; seed", ["need an expression"]),
        ("seed\x00 > 1", ["need an expression"]),
        ("mapping.tau_f + 1", ["true or false", "which is 1.5"]),
        ('"yes"', ["true or false"]),
        ("mapping.top_k < 3", ["cannot be worked out where mapping.top_k=None", "KEY is not None and"]),
        ("1 / (seed - 3) > 0", ["cannot be worked out where seed=3"]),
        ('data.families.Z.seen == ["x"]', ["cannot be worked out", "data.families.Z.seen is not there"]),
        ("(" * 300 + "seed" + ")" * 300 + " > 1", ["need an expression"]),
        ("-" * 1990 + "1 > 0", ["need an expression"]),
        ("seed > 1 or " * 500 + "true", ["at most 2000 characters"]),
    ],
)
def test_a_wrong_expression_is_one_clear_fault(expression: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        holds(expression)
    assert len(caught.value.faults) == 1
    for word in words:
        assert word in caught.value.faults[0]


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true') == 0",
        "open('x') == 1",
        "seed.__class__ == 1",
        "mapping.__class__.__name__ == 'x'",
        "'x'.upper() == 'X'",
        "(1).bit_length() == 1",
        "data.families.keys() == 1",
        "stages.pop() == 1",
        "[x for x in stages] == 1",
        "(lambda: 1)() == 1",
        "f'{seed}' == '3'",
        "stages[0] == 'data'",
        "seed << 2 == 1",
        "(seed := 4) == 4",
        "list(stages) == 1",
        "max(stages, key=len) == 1",
        "{'a': 1} == 1",
        "'%1000000000d' % seed == ''",
        "'x' * 10 ** 9 == ''",
        "9 ** 9 ** 9 ** 9 > 1",
    ],
)
def test_nothing_but_keys_and_arithmetic_gets_through(expression: str) -> None:
    with pytest.raises(ConfigError):
        holds(expression)
    assert config().stages == ["data", "poison"]
