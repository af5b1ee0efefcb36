"""Forget weights from losses: against plain Python, at the edges, through the stage, and what they depend on."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rapidun.base.tracker import Tracker
from rapidun.config.influence import InfluenceConfig, InfluenceMethod
from rapidun.config.mapping import GroupSettings, LoreunSettings, MappingConfig, Null, Weighting
from rapidun.config.run import RunConfig
from rapidun.stages.influence.recipe import STAGE as INFLUENCE
from rapidun.stages.mapping import baselines
from rapidun.stages.mapping.inputs import MappingFiles
from rapidun.stages.mapping.loreun import loreun, loreun_release
from rapidun.stages.mapping.recipe import STAGE
from rapidun.stages.mapping.stage import run_mapping
from rapidun.stages.recipe import ADAPTER, DATA, POISONED, ROW_LOSSES, WEIGHTS, Model


def bounded_oracle(logs: list[float], low: float, high: float) -> list[float]:
    """clip(c exp(x), low, high) with mean 1, by bisection on ln c over 400 halvings: no numpy, no closed form."""

    def at(log_c: float) -> list[float]:
        return [min(high, max(low, math.exp(min(50.0, max(-800.0, x + log_c))))) for x in logs]

    below, above = -max(logs) - 50.0, -min(logs) + 50.0
    for _ in range(400):
        middle = (below + above) / 2
        below, above = (middle, above) if math.fsum(at(middle)) < len(logs) else (below, middle)
    return at((below + above) / 2)


@pytest.mark.parametrize("n", [1, 2, 3, 40])
@pytest.mark.parametrize("tau", [0.05, 0.7, 1.0, 30.0])
@pytest.mark.parametrize("bounds", [(0.2, 3.0), (0.0, 3.0), (0.0, 40.0), (0.9, 1.05)])
def test_loreun_is_its_formula(n: int, tau: float, bounds: tuple[float, float]) -> None:
    losses = np.random.default_rng(n).exponential(0.8, n)
    losses[: n // 2] = losses[0]  # ties
    found = loreun(losses, tau=tau, low=bounds[0], high=bounds[1]).weights
    np.testing.assert_allclose(
        found, bounded_oracle([-x / tau for x in losses.tolist()], *bounds), rtol=1e-9, atol=1e-12
    )
    assert math.fsum(found) / n == pytest.approx(1.0, abs=1e-12)
    assert len(set(found[: n // 2])) <= 1
    # a smaller loss never has less weight
    assert all(found[i] >= found[j] for i in range(n) for j in range(n) if losses[i] < losses[j])


def test_loreun_by_hand() -> None:
    """l = 0, ln 2: exp(-l) = 1, 1/2, so 4/3, 2/3; far apart the second one is at 0.2."""
    np.testing.assert_allclose(loreun(np.array([0.0, math.log(2)]), tau=1.0, low=0.2, high=3.0).weights, [4 / 3, 2 / 3])
    np.testing.assert_allclose(loreun(np.array([0.0, 9.0]), tau=1.0, low=0.2, high=3.0).weights, [1.8, 0.2])


def test_without_bounds_that_act_loreun_is_a_softmax() -> None:
    losses = np.random.default_rng(0).uniform(0.0, 30.0, 25)
    exps = [math.exp(-x / 2.0) for x in losses.tolist()]
    expected = [25 * one / math.fsum(exps) for one in exps]
    np.testing.assert_allclose(loreun(losses, tau=2.0, low=0.0, high=25.0).weights, expected, rtol=1e-12)


def test_loreun_release_is_its_formula_and_goes_the_other_way() -> None:
    losses = [0.1, 0.4, 0.4, 2.0, 9.0]
    u = [math.exp((one - 0.4) / 1.5) for one in losses]
    expected = [min(3.0, max(0.2, one / (sum(u) / 5))) for one in u]
    found = loreun_release(np.array(losses), tau=1.5, low=0.2, high=3.0)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-13)
    assert found.at_low.tolist() == [True, True, True, True, False]
    assert found.at_high.tolist() == [False, False, False, False, True]
    assert np.all(np.diff(found.weights) >= 0)
    assert loreun_release(np.array([0.0, math.log(2)]), tau=1.0, low=0.2, high=3.0).weights == pytest.approx(
        [2 / 3, 4 / 3]
    )


@pytest.mark.parametrize("rule", [loreun, loreun_release])
@pytest.mark.parametrize("value", [0.0, 3.7, 1e4])
@pytest.mark.parametrize("n", [1, 7])
def test_equal_losses_give_equal_weights(rule: Any, value: float, n: int) -> None:
    assert rule(np.full(n, value), tau=0.01, low=0.0, high=3.0).weights.tolist() == [1.0] * n


@pytest.mark.parametrize("low", [0.2, 0.0])
def test_huge_losses_neither_overflow_nor_lose_small_differences(low: float) -> None:
    """1e4 nats beside 0 and 0.5: exp(-1e4 / 0.01) is 0, and the two small ones keep their ratio e^0.5."""
    found = loreun(np.array([1e4, 0.0, 0.5, 1e4]), tau=1.0, low=low, high=4.0)
    assert found.weights[[0, 3]].tolist() == [low, low]
    assert found.at_low.tolist() == [True, False, False, True]
    assert found.weights[1] / found.weights[2] == pytest.approx(math.exp(0.5), rel=1e-12)
    assert found.weights.sum() == pytest.approx(4.0, rel=1e-14)
    sharp = loreun_release(np.array([1e4, 0.0, 0.5, 1e4]), tau=1e-3, low=low, high=4.0).weights
    assert sharp.tolist() == [2.0, low, low, 2.0]


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
@pytest.mark.parametrize("rule", [loreun, loreun_release])
def test_losses_must_be_numbers(rule: Any, bad: list[float]) -> None:
    with pytest.raises(ValueError, match="need"):
        rule(np.array(bad), tau=1.0, low=0.2, high=3.0)


def write_losses(path: Path, losses: list[float]) -> Path:
    path.write_text(
        "".join(json.dumps({"id": f"f{i}", "loss": x, "num_tokens": 3}) + "\n" for i, x in enumerate(losses))
    )
    return path


def run(config: MappingConfig, out: Path, *, seed: int = 42, **files: Path) -> tuple[list[float], list[float], dict]:
    out.mkdir(exist_ok=True)
    run_mapping(config, MappingFiles(out=out, **files), seed=seed, tracker=Tracker())
    weights = [
        [json.loads(line)["weight"] for line in (out / f"{group}_weights.jsonl").read_text().splitlines()]
        for group in ("forget", "retain")
    ]
    return weights[0], weights[1], json.loads((out / "diagnostics.json").read_text())


LOSSES = [0.3, 0.9, 2.0, 0.1, 0.1, 5.0]


@pytest.fixture
def files(tmp_path: Path, write_pack: Any) -> dict[str, Path]:
    return {**write_pack(6, 4), "losses": write_losses(tmp_path / "losses.jsonl", LOSSES)}


def test_the_stage_writes_what_the_losses_say(files: dict[str, Path], tmp_path: Path) -> None:
    forget, retain, found = run(MappingConfig(method=Weighting.loreun_static), tmp_path / "out", **files)
    assert forget == loreun(np.array(LOSSES), tau=1.0, low=0.2, high=3.0).weights.tolist()
    assert retain == [1.0] * 4
    assert found["losses"] == {"mean": sum(LOSSES) / 6, "min": 0.1, "max": 5.0}
    assert found["forget"]["share_at_w_min"] == pytest.approx(1 / 6)
    scores = [json.loads(line) for line in (tmp_path / "out" / "row_scores.jsonl").read_text().splitlines()]
    assert [(one["group"], one["id"], one["score"]) for one in scores] == [
        ("forget", f"f{i}", -x) for i, x in enumerate(LOSSES)
    ]
    assert not (tmp_path / "out" / "dynamic.json").exists()


def test_the_released_stand_in_says_when_it_scales_the_loss(files: dict[str, Path], tmp_path: Path) -> None:
    forget, _, found = run(MappingConfig(method=Weighting.loreun_release), tmp_path / "out", **files)
    assert forget == loreun_release(np.array(LOSSES), tau=1.0, low=0.2, high=3.0).weights.tolist()
    assert found["forget"]["mean"] != pytest.approx(1.0, abs=0.05)
    assert any("as released: it scales the forget loss" in line for line in found["warnings"])


def test_a_row_without_a_loss_is_left_out(files: dict[str, Path], tmp_path: Path) -> None:
    """Too long to be encoded: no stage trains on it, and the others' mean is 1 without it."""
    write_losses(files["losses"], LOSSES[:5])
    forget, _, _ = run(MappingConfig(method=Weighting.loreun_static), tmp_path / "out", **files)
    assert forget == loreun(np.array(LOSSES[:5]), tau=1.0, low=0.2, high=3.0).weights.tolist()


def test_the_dynamic_form_begins_at_the_static_weights_and_says_how_to_go_on(
    files: dict[str, Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"loreun": LoreunSettings(tau=0.5), "forget": GroupSettings(w_min=0.1, w_max=2.0)}
    static, _, _ = run(MappingConfig(method=Weighting.loreun_static, **settings), tmp_path / "a", **files)
    dynamic, _, said = run(MappingConfig(method=Weighting.loreun_dynamic, **settings), tmp_path / "b", **files)
    assert dynamic == static
    rule = json.loads((tmp_path / "b" / "dynamic.json").read_text())
    assert rule == {
        "method": "loreun_dynamic", "tau": 0.5, "w_min": 0.1, "w_max": 2.0,
        "losses": {f"f{i}": x for i, x in enumerate(LOSSES)},
    }  # fmt: skip
    assert any("training renews them" in line for line in said["notes"])


def test_nulls_of_the_dynamic_form(files: dict[str, Path], tmp_path: Path) -> None:
    """Shuffled: the rows' weights change hands, in dynamic.json as in the weights file; uniform: nothing to renew."""
    static, _, _ = run(MappingConfig(method=Weighting.loreun_static), tmp_path / "a", **files)
    config = MappingConfig(method=Weighting.loreun_dynamic, null=Null.shuffled)
    shuffled, _, _ = run(config, tmp_path / "b", **files)
    assert sorted(shuffled) == sorted(static) and shuffled != static
    takes = json.loads((tmp_path / "b" / "dynamic.json").read_text())["takes"]
    assert sorted(takes.values()) == sorted(takes) == [f"f{i}" for i in range(6)]
    assert shuffled == [static[int(takes[f"f{i}"][1:])] for i in range(6)]
    flat, _, _ = run(MappingConfig(method=Weighting.loreun_dynamic, null=Null.uniform), tmp_path / "c", **files)
    assert flat == [1.0] * 6 and not (tmp_path / "c" / "dynamic.json").exists()
    (fault,) = MappingConfig(method=Weighting.loreun_dynamic, null=Null.random).check()
    assert "null=none, shuffled or uniform" in fault


@pytest.mark.parametrize("null", [Null.shuffled, Null.random, Null.uniform])
def test_a_static_weighting_has_its_own_nulls(files: dict[str, Path], tmp_path: Path, null: Null) -> None:
    static, _, _ = run(MappingConfig(method=Weighting.loreun_static), tmp_path / "a", **files)
    found, retain, said = run(MappingConfig(method=Weighting.loreun_static, null=null), tmp_path / "b", **files)
    generator = baselines.group_generator(42, null.name, "forget")
    expected = baselines.NULLS[null.name](np.array(static), generator=generator).tolist()
    assert found == pytest.approx(expected, rel=1e-9) and retain == [1.0] * 4
    assert said["of"]["forget"]["max"] == max(static)


# --- what they depend on ------------------------------------------------------------------------------------------


def context(influence: InfluenceConfig | None = None, max_length: int = 256, **mapping: Any) -> Any:
    """A configuration over a model and a pack that are not there."""
    products: dict[Any, Any] = {POISONED: Model("m", Path("m")), ADAPTER: None, DATA: None}
    ctx: Any = SimpleNamespace(
        cfg=RunConfig(mapping=MappingConfig(**mapping), influence=influence or InfluenceConfig()),
        split=lambda name: name,
        path=lambda recipe: Path(recipe.kind),
        numerics={"dtype": "float32", "max_length": max_length},
        data=SimpleNamespace(path=Path("data")),
        asked=lambda stage: True,
    )
    provides = {**INFLUENCE.provides, **STAGE.provides}
    ctx.get = lambda product: provides[product](ctx) if product in provides else products[product]
    return ctx


def print_of(ctx: Any, product: Any) -> str:
    found: str = ctx.get(product).fingerprint
    return found


def test_a_temperature_changes_the_mapping_and_leaves_the_losses() -> None:
    base = context(method=Weighting.loreun_static)
    sharp = context(method=Weighting.loreun_static, loreun=LoreunSettings(tau=0.1))
    assert print_of(base, ROW_LOSSES) == print_of(sharp, ROW_LOSSES)
    assert print_of(base, WEIGHTS) != print_of(sharp, WEIGHTS)
    assert [need.kind for need in base.get(WEIGHTS).needs if need] == ["losses"]
    assert base.get(ROW_LOSSES).implicit and base.get(ROW_LOSSES).stage == "influence"


def test_losses_depend_on_model_rows_and_numerics_alone() -> None:
    other = InfluenceConfig(method=InfluenceMethod.exact, k=7, tokens_per_batch=9, contrast=True)
    base = context(method=Weighting.loreun_static)
    assert print_of(context(other, method=Weighting.loreun_static), WEIGHTS) == print_of(base, WEIGHTS)
    assert print_of(context(method=Weighting.loreun_static, max_length=64), ROW_LOSSES) != print_of(base, ROW_LOSSES)
    assert set(base.get(ROW_LOSSES).inputs) == {"forget", "model", "adapter", "dtype", "max_length"}


def test_only_what_is_read_is_in_the_fingerprint() -> None:
    for method in (Weighting.loreun_static, Weighting.loreun_dynamic, Weighting.loreun_release):
        found = context(method=method).get(WEIGHTS).inputs
        assert found["settings"] == {
            "method": method.name, "null": "none", "loreun": {"tau": 1.0}, "forget": {"w_min": 0.2, "w_max": 3.0},
        }  # fmt: skip
        assert found["seed"] is None
    # what others read, and what they do not
    rapidun = context(method=Weighting.rapidun).get(WEIGHTS).inputs["settings"]
    assert not {"loreun", "guard"} & set(rapidun)
    assert context(method=Weighting.uniform).get(WEIGHTS).inputs["settings"] == {"method": "uniform", "null": "none"}
