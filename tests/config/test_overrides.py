"""Overrides are checked one by one, all faults at once, before anything is composed."""

import pytest
from omegaconf import OmegaConf

from rapidun.config.mapping import Weighting
from rapidun.config.overrides import Checked, check_overrides, convert
from rapidun.config.paths import config_groups


def check(*overrides: str, multirun: bool = False) -> Checked:
    return check_overrides(overrides, groups=config_groups(), multirun=multirun)


@pytest.mark.parametrize(
    ("typed", "spelt"),
    [
        ("mapping.tau_f=0.5", "mapping.tau_f=0.5"),
        ("+mapping.tau_f=0.5", "mapping.tau_f=0.5"),
        ("++seed=1", "seed=1"),
        ("+experiment=dolly_smollm2", "experiment=dolly_smollm2"),
        ("experiment=null", "~experiment"),
        ("~debug", "~debug"),
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
        ("hydra/launcher=rapidun_slurm", "hydra/launcher=rapidun_slurm"),
        ("hydra/job_logging=default", "hydra/job_logging=default"),
        ("sweep.zip=[[seed,mapping.tau_f],[a,b]]", "sweep.zip=[[seed,mapping.tau_f],[a,b]]"),
        ("sweep.zip=[seed,mapping.tau_f]", "sweep.zip=[[seed,mapping.tau_f]]"),
        ("+sweep.zip=[]", "sweep.zip=[]"),
        ("sweep.where=null", "sweep.where=null"),
        ("sweep.where=seed", "sweep.where=seed"),
        ("sweep.where='seed > 1'", "sweep.where='seed > 1'"),
        ("sweep.where=seed > 1", "sweep.where='seed > 1'"),
        ("sweep.budget=max(asr_seen,asr_ood) < 1", "sweep.budget='max(asr_seen,asr_ood) < 1'"),
        ("sweep.where=seed in [1,2]", "sweep.where='seed in [1,2]'"),
        ("sweep.where=[1] == [2]", "sweep.where='[1] == [2]'"),
        ("sweep.where=min(seed,2) == 1", "sweep.where='min(seed,2) == 1'"),
        ('sweep.where="a" == "b"', 'sweep.where=\'"a" == "b"\''),
        ("sweep.where='a' == 'b'", "sweep.where='\\'a\\' == \\'b\\''"),
        ("cluster.sbatch.nice=100", "++cluster.sbatch={nice: 100}"),
        ("cluster.environment.HF_HOME=/a/b", "++cluster.environment={HF_HOME: /a/b}"),
        ("cluster.environment={A: x}", "++cluster.environment={A: x}"),
        ("resources.mem_gb=null", "resources.mem_gb=null"),
        ("name=${seed}", "name=${seed}"),
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
        ("hydra/launcher=rapidun_slrm", ["known: basic, joblib", "did you mean hydra/launcher=rapidun_slurm?"]),
        ("hydra/launcher=null", ["no such choice 'null'"]),
        ("hydra/sweeper=optuna", ["no such choice 'optuna'", "rapidun_optuna"]),
        ("hydra.verbose=true,false", ["cannot be swept"]),
        ("sweep.zip=x", ["need a list of lists such as [[a,b],[c,d]]"]),
        ("resources.num_thread=4", ["did you mean resources.num_threads?"]),
        ("cluster.partitions=a", ["did you mean cluster.partition?"]),
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


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("sweep.name=a,b", ["sweep.name: cannot be swept"]),
        ("sweep.max_failures=1,2", ["sweep.max_failures: cannot be swept"]),
        ("seed=range(0,3,0)", ["a step other than 0, got range(0,3,0)"]),
        ("seed=range(3,1)", ["need 1 to 100000 values, got range(3,1,1) with 0"]),
        ("seed=range(10000000000)", ["with 10000000000"]),
        ("mapping.tau_f=range(0,inf)", ["need a finite range"]),
        ("seed=range(0,2,0.5)", ["need a whole number, got 0.0"]),
        ("seed=int(interval(0,9))", ["Intervals need hydra/sweeper=rapidun_optuna"]),
        ("cluster.sbatch.nice=1,2", ["Sweep cluster.sbatch={...},{...}"]),
    ],
)
def test_wrong_sweeps_say_what_was_expected(typed: str, words: list[str]) -> None:
    checked = check(typed, multirun=True)
    assert checked.faults and checked.overrides == []
    for word in words:
        assert word in checked.faults[0]


def test_memory_may_be_swept() -> None:
    assert check("resources.mem_gb=8,16", multirun=True) == Checked(["resources.mem_gb=8,16"], [], certain=True)


def test_intervals_pass_where_a_sweeper_takes_them_and_both_ends_are_checked() -> None:
    tuner = "hydra/sweeper=rapidun_optuna"
    assert check(tuner, "mapping.tau_f=interval(0.1,3)", multirun=True).faults == []
    assert check(tuner, "seed=int(interval(1,9))", multirun=True).faults == []
    assert "need a whole number" in check(tuner, "seed=interval(0.5,1.5)", multirun=True).faults[0]
    assert check(tuner, "seed=interval(0,1)", multirun=False).faults


def test_a_value_tried_leaves_nothing_behind() -> None:
    assert check("mapping.tau_f=${nothing}", "mapping.tau_f=0.5", "model.path=???").faults == []
    assert convert("mapping.tau_f", 1) == 1.0 and type(convert("mapping.tau_f", 1)) is float
    assert convert("mapping.method", "uniform") is Weighting.uniform
    assert convert("stages", ["data"]) == ["data"] and type(convert("stages", ["data"])) is list


def test_many_values_share_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each value took 30 s."""
    made: list[int] = []
    structured = OmegaConf.structured
    monkeypatch.setattr(OmegaConf, "structured", lambda *args, **kwargs: made.append(1) or structured(*args, **kwargs))
    checked = check("seed=range(2000)", "mapping.tau_f=range(1,2000)", multirun=True)
    assert checked.faults == []
    assert len(made) <= 4
