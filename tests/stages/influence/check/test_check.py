"""`rapidun influence check`: numbers that an oracle knows, advice that follows from them, and faults."""

import itertools
import json

import numpy as np
import pytest
import torch

from rapidun.cli.main import main
from rapidun.config.influence import InfluenceConfig, InfluenceMethod, ParameterSet, Score
from rapidun.stages.influence.check.check import advise, block_of, check_influence, floor_pass, kind_of, measure_cost
from rapidun.stages.influence.gradients.params import select_parameters

NAMES = [f"row {i}" for i in range(7)]
GROUPS = [[1, 6, 3], [0, 4], [5, 2]]


@pytest.fixture
def check(make_model, rows, batches_of):
    def run(model=None, *, params=ParameterSet.all_linear, num_truncated=0, pack_rows=1000, on_step=None, **settings):
        model = make_model() if model is None else model
        cfg = InfluenceConfig(params=params, **settings)
        return check_influence(
            cfg,
            model,
            select_parameters(model, params),
            batches_of(rows, GROUPS),
            texts=[("do", "", f"word{i} again{i % 2}") for i in range(7)],
            row_names=NAMES,
            num_truncated=num_truncated,
            pack_rows=pack_rows,
            rounds=1,
            **({} if on_step is None else {"on_step": on_step}),
        )

    return run


def test_a_sketch_against_autograd(check, make_model, rows, autograd_gradients):
    """Spread, norms and shares from batch-size-1 autograd gradients, cut at the parameters' borders."""
    model = make_model()
    parameters = select_parameters(model, ParameterSet.all_linear)
    checked = check(model, method=InfluenceMethod.sketch, k=4096)
    gradients = autograd_gradients(model, parameters, rows)
    norms = gradients.norm(dim=1)
    cosines = (gradients @ gradients.T / torch.outer(norms, norms)).numpy()
    i, j = np.triu_indices(7, 1)
    assert checked.spread == pytest.approx(cosines[i, j].std())
    assert checked.norm_ratio == pytest.approx((norms.max() / norms.median()).item())
    parts = gradients.split([p.numel for p in parameters], dim=1)
    of_norm = {}
    for parameter, part in zip(parameters, parts, strict=True):
        name = kind_of(parameter.name)
        of_norm[name] = of_norm.get(name, 0.0) + (part.norm(dim=1) ** 2 / norms**2).mean().item()
    assert {share.name: pytest.approx(share.of_norm) for share in checked.modules} == of_norm
    for shares in (checked.modules, checked.layers):
        assert sum(share.of_score for share in shares) == pytest.approx(1.0)
        assert sum(share.numbers for share in shares) == checked.num_parameters
    assert {share.name for share in checked.layers} == {"0", "1"}
    assert checked.result.spearman > 0.9
    low, high = checked.effective_k_interval
    assert low < checked.result.effective_k < high
    assert checked.as_json()["bytes_per_row"] == 4 * 4096
    json.dumps(checked.as_json())


def test_every_method_is_checked(check):
    for method in InfluenceMethod:
        settings = {"k": 512, "buckets": 64, "pad_multiple": 1024}
        if method is InfluenceMethod.bm25:
            settings["score"] = Score.dot
        steps = []
        checked = check(method=method, on_step=lambda *step, steps=steps: steps.append(step), **settings)
        # told of every pass, the last of which is the last
        assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
        assert checked.cost.ratio > 0 and checked.exact_cost.seconds > 0
        assert (checked.result is None) == (method is InfluenceMethod.exact)
        assert checked.advice


def test_advice_follows_the_numbers(check):
    """A sketch of 32 numbers cannot rank; 2^16 can; a tensor sketch of 8 buckets wastes its numbers."""
    poor = check(method=InfluenceMethod.sketch, k=32)
    assert "Raise influence.k: about" in " ".join(poor.advice)
    assert "as good as exact" in " ".join(check(method=InfluenceMethod.sketch, k=1 << 16).advice)
    wasted = check(method=InfluenceMethod.tensorsketch, k=1 << 14, buckets=8)
    assert "raise influence.buckets (now 8)" in " ".join(wasted.advice)
    said = " ".join(check(method=InfluenceMethod.exact, num_truncated=3).advice)
    assert "are exact" in said and "3 of 7 rows are longer than max_length" in said
    # no sentence about an exact run that would take an hour
    slow = check(method=InfluenceMethod.sketch, k=512, pack_rows=10**9)
    assert not any("influence.method=exact takes" in line for line in slow.advice)


def test_gradients_of_zero_are_said(check, make_model):
    model = make_model()
    model.lm_head.weight.data.zero_()
    checked = check(model, method=InfluenceMethod.exact)
    assert checked.num_zero == 7
    assert "All gradients are zero" in " ".join(advise(checked, InfluenceConfig(method=InfluenceMethod.exact)))


def test_names_of_groups():
    name = "base_model.model.model.layers.11.mlp.up_proj.lora_B.default.weight"
    assert (kind_of(name), block_of(name)) == ("mlp.up_proj.lora_B", "11")
    assert (kind_of("lm_head.weight"), block_of("lm_head.weight")) == ("lm_head", "outside")


def test_cost_is_the_median_of_neighbours_ratios(monkeypatch):
    """Ticks by hand, F0 then work in turn: a first round that does not count, then 1 2, 2 6, 4 4: ratios 2, 3, 1."""
    durations = itertools.chain.from_iterable([(9, 90), (1, 2), (2, 6), (4, 4)])
    times = [0.0]

    def clock():
        return times[0]

    def pass_time(*_):
        times[0] += next(durations)

    monkeypatch.setattr("rapidun.stages.influence.check.check.floor_pass", pass_time)
    cost = measure_cost(pass_time, None, [], rounds=3, clock=clock)
    assert cost == (4, 2, 2)


def test_floor_leaves_no_gradient(make_model, rows, batches_of):
    model = make_model().train()
    floor_pass(model, batches_of(rows, GROUPS))
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["check", "influence.kk=3"], "did you mean influence.k?"),
        (["check"], "need a model that is there, got none"),
        (["check", "model.path=./nowhere"], "which is not there"),
        (["check", "--rows", "3"], "need --rows >= 4"),
        (["check", "--rounds", "many"], "invalid int value: 'many'"),
        (["check", "--json", "no/such/folder.json"], "in a folder that is there"),
        (["check", "--json", "."], "need --json FILE in a folder that is there, got ."),
        (["check", "model.path=./nowhere", "--rows", "8", "influence.k=64"], "which is not there"),
        (["check", "--wors", "8"], "unrecognized arguments: --wors"),
        (["check", "model.path=nowhere", "influence.precondition=kfac"], "need influence.precondition=none"),
        (["chekc"], "invalid choice: 'chekc'"),
    ],
)
def test_faults_are_one_message(capsys, argv, said):
    assert main(["influence", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_from_the_command_line(capsys, tmp_path, make_model):
    """The built-in pack on a model made from scratch; the file holds what the screen shows."""
    from rapidun.config.data import BuiltinConfig
    from rapidun.models.scratch import make_scratch
    from rapidun.stages.data.builtin import builtin_pack
    from rapidun.stages.data.triggers import FAMILIES

    sizes = {name: getattr(BuiltinConfig(), name) for name in BuiltinConfig.__slots__}
    make_scratch(
        tmp_path / "model",
        [row.texts for row in builtin_pack(FAMILIES, **sizes, seed=0).train_clean[:200]],
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=400,
        max_length=64,
        seed=0,
    )
    argv = ["--rows", "8", "--rounds", "1", "--json", str(tmp_path / "check.json"), f"model.path={tmp_path / 'model'}"]
    assert main(["influence", "check", *argv, "influence.k=1024"]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["num_rows"] == 8 and found["numbers_per_row"] == 1024 and found["pack_rows"] == 240
    assert f"{found['result']['spearman']:.4f} over pairs" in out
    assert all(line[:40] in out for line in found["advice"])
    for max_length, status, said in (
        (32, 0, "rapidun: influence check: of 8 rows "),
        (8, 2, "need 4 rows whose instruction leaves room for a response in max_length=8 tokens, got 0 of 8"),
    ):
        assert main(["influence", "check", *argv, "influence.k=1024", f"max_length={max_length}"]) == status
        captured = capsys.readouterr()
        assert said in captured.err
    assert (
        "rows are longer than max_length and were cut: raise it."
        in json.loads((tmp_path / "check.json").read_text())["advice"][-1]
    )
