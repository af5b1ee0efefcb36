"""Overrides are checked one by one, all faults at once, before anything is composed."""

import pytest

from rapidun.paths import config_groups
from rapidun.preflight import Checked, check_overrides


def check(*overrides: str, multirun: bool = False) -> Checked:
    return check_overrides(overrides, groups=config_groups(), multirun=multirun)


@pytest.mark.parametrize(
    ("typed", "spelt"),
    [
        ("mapping.tau_f=0.5", "mapping.tau_f=0.5"),
        ("+mapping.tau_f=0.5", "mapping.tau_f=0.5"),
        ("++seed=1", "seed=1"),
        ("+experiment=dolly_smollm2", "experiment=dolly_smollm2"),
        ("experiment=null", "experiment=null"),
        ("mapping.forget=w.jsonl", "mapping.forget.path=w.jsonl"),
        ("mapping.retain='a b.jsonl'", "mapping.retain.path='a b.jsonl'"),
        ("mapping.forget={w_min: 0.5}", "mapping.forget={w_min: 0.5}"),
        ("mapping.top_k=null", "mapping.top_k=null"),
        ("stages=[influence,mapping]", "stages=[influence,mapping]"),
        ("model.quantisation=4bit", "model.quantisation=4bit"),
        ("data.families.D.seen=[x]", "++data.families={D: {seen: [x]}}"),
        ("~data.families.A_surface", "~data.families.A_surface"),
        ("hydra.verbose=true", "hydra.verbose=true"),
        ("hydra/launcher=basic", "hydra/launcher=basic"),
    ],
)
def test_valid_overrides_are_spelt_as_hydra_takes_them(typed: str, spelt: str) -> None:
    assert check(typed) == Checked([spelt], [], certain=True)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("+typo=1", ["typo: no such key"]),
        ("++mapping.tauf=1", ["mapping.tauf", "did you mean mapping.tau_f?"]),
        ("mapping.tau_f=abc", ["need a number, got 'abc'"]),
        ("seed=1.5", ["need a whole number, got 1.5"]),
        ("model.device=gpu", ["one of auto, cpu, cuda", "'gpu'"]),
        ("influence.score=cosin", ["Did you mean cosine?"]),
        ("stages=data", ["need a list such as [a,b]"]),
        ("mapping=null", ["no such choice 'null'", "rapidun_release"]),
        ("mapping={tau_f: 1}", ["mapping.KEY=VALUE"]),
        ("~seed", ["cannot be removed"]),
        ("~mapping", ["cannot be removed"]),
        ("~nothing", ["no such key"]),
        ("seed=1,2", ["several values need -m"]),
        ("seed", ["need key=value"]),
        ("mapping@other=uniform", ["packages (@)"]),
        ("mapping.tau_f=[1", ["cannot be read"]),
        ("data.families.D.sen=[x]", ["did you mean data.families.D.seen?"]),
        ("data.families={D: {sen: [x]}}", ["did you mean data.families.D.seen?"]),
    ],
)
def test_wrong_overrides_say_what_was_expected(typed: str, words: list[str]) -> None:
    checked = check(typed)
    assert len(checked.faults) == 1
    assert checked.overrides == []
    for word in words:
        assert word in checked.faults[0]


def test_all_faults_come_together_and_valid_overrides_survive() -> None:
    checked = check("+typo=1", "mapping.tauf=1", "seed=7", "model.device=gpu")
    assert len(checked.faults) == 3
    assert checked.overrides == ["seed=7"]


def test_a_misspelt_choice_is_replaced_so_that_the_rest_can_be_checked() -> None:
    checked = check("mapping=rapidunn")
    assert checked.overrides == ["mapping=rapidun"]
    assert "did you mean mapping=rapidun?" in checked.faults[0]
    assert checked.certain
    assert not check("mapping=qqqq").certain


def test_a_sweep_is_checked_value_by_value() -> None:
    assert check("seed=0,1,2", "mapping=uniform,rapidun", "mapping.tau_f=range(1,3)", multirun=True).faults == []
    faults = check("seed=0,a,b", "mapping=uniform,unifrm", multirun=True).faults
    assert len(faults) == 3
    assert "got 'a'" in faults[0] and "got 'b'" in faults[1] and "'unifrm'" in faults[2]
    assert "values to try" in check("mapping.tau_f=interval(0,1)", multirun=True).faults[0]
