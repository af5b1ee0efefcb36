"""A search under a budget: the sampler is told, the best is the best within it."""

import json
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ConfigError
from rapidun.cli import main as cli
from rapidun.config.cells import search_space
from rapidun.report.sweep.budget import make_budget
from rapidun.sweep.pruning import open_storage
from rapidun.sweep.tuning import loop as tuning
from rapidun.sweep.tuning.search import Search, Tuning
from rapidun.sweep.tuning.space import Space

optuna = pytest.importorskip("optuna")
FILE = Path(__file__).with_name("tuning_driver.py")
SPACE = ("mapping.tau_f=interval(0.1,2)", "hydra.sweeper.directions={asr_seen: minimize}")


def load_driver() -> Any:
    found = util.spec_from_file_location("tuning_driver", FILE)
    assert found is not None and found.loader is not None
    module = util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


driver = load_driver()


def compute(cfg: Any) -> dict[str, Any]:
    """The lower tau_f, the fewer poisoned answers and the higher the perplexity, 10 before: within 12 from .5 on."""
    return {"asr_seen": cfg.mapping.tau_f, "ppl_clean": 10 + 1 / cfg.mapping.tau_f, "before.ppl_clean": 10.0}


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "prepare", driver.prepare)

    def run(*overrides: str, compute: Callable[[Any], dict[str, Any]] = compute) -> int:
        monkeypatch.setattr(tuning, "launch", driver.make_launch(compute))
        # a batch is composed at once
        return cli.main([*driver.SEARCH, *SPACE, "hydra.sweeper.batch_size=10", *overrides])

    return run


def written() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("outputs/sweeps/s/tuning.json").read_text())
    return found


BUDGET = "sweep.budget=ppl_clean <= 1.2 * before.ppl_clean"


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii", "random"])
def test_the_best_is_the_best_within_the_budget(
    search: Callable[..., int], sampler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(BUDGET, "hydra.sweeper.n_trials=8", f"hydra.sweeper.sampler={sampler}") == 0
    found = written()
    taus = {trial["number"]: trial["params"]["mapping.tau_f"] for trial in found["trials"]}
    within = {number: tau for number, tau in taus.items() if tau >= 0.5}
    assert 0 < len(within) < 8
    assert {one["number"] for one in found["trials"] if one["budget"] == "within"} == within.keys()
    assert found["best"] == [min(within, key=within.__getitem__)]
    outside = next(one for one in found["trials"] if one["budget"] == "outside")
    missed = (10 + 1 / taus[outside["number"]] - 12) / 12
    assert outside["excesses"] == [pytest.approx(missed, rel=1e-4)]
    shown = " ".join(capsys.readouterr().out.split())
    assert "Best trial within the budget" in shown
    assert f"8 done; of the done ones {len(within)} within the budget, {8 - len(within)} outside" in shown
    if sampler != "random":  # and the sampler was told
        study = optuna.load_study(study_name="tuning", storage=open_storage(Path("outputs/sweeps/s/optuna.jsonl")))
        told = [list(trial.system_attrs["constraints"]) for trial in study.trials]
        assert told == [trial["excesses"] for trial in found["trials"]]
    assert ("picks without regard to sweep.budget" in shown) is (sampler == "random")


def test_where_none_is_within_the_nearest_is_named(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bound 10: 10 + 1/tau misses it by 1/(10 tau), least at the largest tau."""
    assert search("sweep.budget=ppl_clean <= before.ppl_clean", "hydra.sweeper.n_trials=4") == 0
    found = written()
    largest = max(found["trials"], key=lambda trial: trial["params"]["mapping.tau_f"])
    shown = " ".join(capsys.readouterr().out.split())
    assert found["best"] == [] and "Best trial" not in shown
    missed = 100 / (10 * largest["params"]["mapping.tau_f"])
    assert f"the nearest, trial {largest['number']}, misses it by {missed:.3g} % of the bound" in shown


def test_what_was_not_measured_is_unknown_and_not_chosen(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def some(cfg: Any) -> dict[str, Any]:
        return compute(cfg) | ({"ppl_clean": None} if cfg.mapping.tau_f < 1 else {})

    overrides = ("mapping.tau_f=0.6,1.2", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random")
    assert search(BUDGET, *overrides, compute=some) == 0
    found = written()
    unknown = [trial for trial in found["trials"] if trial["budget"] == "unknown"]
    assert 0 < len(unknown) < 6
    assert {trial["params"]["mapping.tau_f"] for trial in unknown} == {"0.6"}
    assert {found["trials"][number]["params"]["mapping.tau_f"] for number in found["best"]} == {"1.2"}
    shown = " ".join(capsys.readouterr().out.split())
    assert "budget unknown: without ppl_clean" in shown and f"{len(unknown)} unknown" in shown


def test_failed_and_pruned_trials_are_counted_as_such(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def some(cfg: Any) -> dict[str, Any]:
        if cfg.mapping.tau_f < 0.8:
            return {"state": "failed", "error": "no luck"}
        return {"state": "pruned", "error": "step 3"} if cfg.mapping.tau_f < 1.2 else compute(cfg)

    assert search(BUDGET, "hydra.sweeper.n_trials=10", "hydra.sweeper.sampler=random", compute=some) == 1
    states = [trial["state"] for trial in written()["trials"]]
    counts = {state: states.count(state) for state in ("done", "pruned", "failed")}
    assert all(counts.values())
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        f"{counts['done']} done, {counts['pruned']} pruned, {counts['failed']} failed; of the done ones "
        f"{counts['done']} within the budget, 0 outside"
    ) in shown
    assert {trial["budget"] for trial in written()["trials"] if trial["state"] != "done"} == {None}


def test_what_is_wrong_is_said_before_or_after_the_first_trial(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("sweep.budget=ppl_claen < 3") == 2
    assert "did you mean ppl_clean?" in " ".join(capsys.readouterr().err.split())
    assert not Path("outputs").exists()
    assert search("sweep.budget=rougeL_clean > 0.5", "hydra.sweeper.n_trials=3") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "sweep.budget: need metrics of result.json, got rougeL_clean; there are asr_seen, ppl_clean" in said


def test_another_budget_is_another_search(tmp_path: Path) -> None:
    space = Space(search_space(["hydra/sweeper=rapidun_optuna", SPACE[0]]).axes)
    budget = make_budget("ppl_clean < 3")
    for _ in range(2):
        Search(tmp_path, Tuning(n_trials=2), space, fixed={"seed": 0}, budget=budget).next_batch()
    with pytest.raises(ConfigError, match=r"need the budget of its earlier trials, got others \(sweep.budget: ppl"):
        Search(tmp_path, Tuning(n_trials=2), space, fixed={"seed": 0})


def test_a_study_of_before_there_were_budgets_has_none(tmp_path: Path) -> None:
    space = Space(search_space(["hydra/sweeper=rapidun_optuna", SPACE[0]]).axes)
    older = Search(tmp_path, Tuning(n_trials=2), space, fixed={"seed": 0})
    older.study.ask()
    older.study.set_user_attr("budget", None)
    Search(tmp_path, Tuning(n_trials=2), space, fixed={"seed": 0})
    with pytest.raises(ConfigError, match="need the budget of its earlier trials"):
        Search(tmp_path, Tuning(n_trials=2), space, fixed={"seed": 0}, budget=make_budget("ppl_clean < 3"))


def test_a_dry_run_shows_it(search: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert search(BUDGET, "sweep.dry_run=true") == 0
    assert "budget: ppl_clean <= 1.2 * before.ppl_clean" in capsys.readouterr().out
