"""Searches with cells computed by a formula; one with real cells."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from rapidun.cli import main as cli
from rapidun.sweep.pruning import open_storage
from rapidun.sweep.tuning import loop as tuning

optuna = pytest.importorskip("optuna")

DRIVER = Path(__file__).with_name("tuning_driver.py")
TAU_F, TAU_R = "mapping.tau_f=interval(0.1,2)", "mapping.tau_r=range(0.25,2,0.25)"
ROOT = Path(cli.__file__).parents[2]


def load_driver() -> Any:
    found = util.spec_from_file_location("tuning_driver", DRIVER)
    assert found is not None and found.loader is not None
    module = util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


driver = load_driver()


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """search(*overrides, compute=formula) -> exit status, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "prepare", driver.prepare)

    def run(*overrides: str, compute: Callable[[Any], dict[str, Any]] = driver.result) -> int:
        monkeypatch.setattr(tuning, "launch", driver.make_launch(compute))
        return cli.main([*driver.SEARCH, *overrides])

    return run


def trials(folder: Path = Path()) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "outputs/sweeps/s/tuning.json").read_text())["trials"]
    return found


def starts(folder: Path = Path()) -> list[str]:
    return (folder / "runs.log").read_text().split()


def in_process(folder: Path, *overrides: str, kill_at: int = 0, when: str = "running") -> int:
    """Run the driver as a program; return its exit status, negative for a signal."""
    folder.mkdir(exist_ok=True)
    orders = json.dumps({"kill_at": kill_at, "when": when})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(DRIVER), orders, TAU_F, TAU_R, *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def brute_force(found: list[dict[str, Any]], signs: dict[str, int]) -> list[int]:
    """Numbers of the trials that no other one equals or beats everywhere and beats somewhere."""
    points = {
        trial["number"]: [signs[name] * value for name, value in trial["values"].items()]
        for trial in found
        if trial["state"] == "done"
    }

    def beats(a: list[float], b: list[float]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))

    return [number for number, point in points.items() if not any(beats(other, point) for other in points.values())]


# Killed and resumed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "batch_size", "sampler"),
    [("running", 4, "tpe"), ("done", 1, "random")],
)
def test_killed_at_the_ninth_of_twenty_trials_it_ends_like_an_undisturbed_one(
    tmp_path: Path, when: str, batch_size: int, sampler: str
) -> None:
    settings = (
        "hydra.sweeper.n_trials=20", f"hydra.sweeper.batch_size={batch_size}", f"hydra.sweeper.sampler={sampler}"
    )  # fmt: skip
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert in_process(killed, *settings, kill_at=9, when=when) == -signal.SIGKILL
    assert len(starts(killed)) == 9
    assert in_process(killed, *settings) == 0
    assert in_process(undisturbed, *settings) == 0

    found = trials(killed)
    assert [trial["number"] for trial in found] == list(range(20))
    assert {trial["state"] for trial in found} == {"done"}
    # no trial is lost, none is picked or computed otherwise
    assert found == trials(undisturbed)
    # only the cell that was cut off in the middle started twice
    once = list(dict.fromkeys(starts(killed)))
    assert once == starts(undisturbed)
    assert len(starts(killed)) == len(once) + (when == "running")
    # the Pareto set is the brute-force one of the recorded trials
    pareto = json.loads((killed / "outputs/sweeps/s/pareto.json").read_text())
    numbers = [trial["number"] for trial in pareto["pareto"]]
    assert numbers == brute_force(found, {"asr_seen": -1, "ppl_clean": -1})
    assert 1 < len(numbers) < 20


# What is written


def test_ties_and_undefined_values_in_the_pareto_set(search: Callable[..., int]) -> None:
    """A metric that is null (its value was NaN) is a failed trial; equal trials stand together."""

    def compute(cfg: Any) -> dict[str, Any]:
        x = cfg.mapping.tau_f
        return {"asr_seen": round(x), "ppl_clean": None if x < 0.6 else round(2 - x), "exact": round(3 * x) % 3}

    directions = "hydra.sweeper.directions={asr_seen: minimize, ppl_clean: minimize, exact: maximize}"
    assert search(TAU_F, directions, "hydra.sweeper.n_trials=14", "hydra.sweeper.sampler=random", compute=compute) == 1
    found = trials()
    assert {trial["state"] for trial in found} == {"done", "failed"}
    assert {trial["error"] for trial in found} == {None, "need finite numbers in result.json, got ppl_clean=None"}
    pareto = json.loads(Path("outputs/sweeps/s/pareto.json").read_text())
    numbers = [trial["number"] for trial in pareto["pareto"]]
    assert numbers == brute_force(found, {"asr_seen": -1, "ppl_clean": -1, "exact": 1})
    values = [tuple(trial["values"].values()) for trial in pareto["pareto"]]
    assert len(set(values)) < len(values)
    # the same set as optuna's own
    study = optuna.load_study(study_name="tuning", storage=open_storage(Path("outputs/sweeps/s/optuna.jsonl")))
    assert numbers == sorted(trial.number for trial in study.best_trials)
    table = Path("outputs/sweeps/s/pareto.md").read_text()
    assert table.startswith("# Pareto set of ") and table.count("\n| ") == len(numbers) + 1
    # a failed number would be the same again: nothing is tried anew
    assert search(TAU_F, directions, "hydra.sweeper.n_trials=14", "hydra.sweeper.sampler=random", compute=compute) == 1
    assert trials() == found


def test_one_direction_names_the_best_trial(search: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert search(TAU_F, "hydra.sweeper.directions={ppl_clean: maximize}", "hydra.sweeper.n_trials=5") == 0
    written = json.loads(Path("outputs/sweeps/s/tuning.json").read_text())
    best = max(trial["values"]["ppl_clean"] for trial in written["trials"])
    assert [written["trials"][n]["values"] for n in written["best"]] == [{"ppl_clean": best}] * len(written["best"])
    assert not Path("outputs/sweeps/s/pareto.json").exists()
    shown = capsys.readouterr().out
    assert "Best trial" in shown and "search: 5 trials: 5 done" in shown


def test_dry_run_shows_the_space_and_makes_nothing(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (TAU_F, TAU_R, "mapping=uniform,rapidun", "hydra.sweeper.sampler=random")
    assert search(*overrides, "sweep.dry_run=true") == 0
    shown = capsys.readouterr().out
    assert "20 trials in all, none there yet, 20 to finish, 1 at a time" in shown
    assert "mapping.tau_f                    0.1 to 2\n" in shown
    assert "mapping.tau_r                    0.25 to 1.75 in steps of 0.25\n" in shown
    assert "mapping                          uniform, rapidun\n" in shown
    assert "sampler random, seed 0; pruner none" in shown
    assert not Path("outputs").exists()
    assert search(*overrides, "hydra.sweeper.n_trials=3") == 0
    capsys.readouterr()
    assert search(*overrides, "sweep.dry_run=true") == 0
    assert "20 trials in all, 3 done, 17 to finish" in capsys.readouterr().out


# Which trials run


def test_equal_parameters_share_one_cell(search: Callable[..., int]) -> None:
    """Two values, eight trials: two cells run, in a batch and over batches."""
    assert search("mapping.tau_f=0.3,0.7", "hydra.sweeper.n_trials=8", "hydra.sweeper.batch_size=4") == 0
    assert len(starts()) == 2
    found = trials()
    assert len(found) == 8 and len({trial["cell"] for trial in found}) == 2
    for trial in found:
        same = [other for other in found if other["cell"] == trial["cell"]]
        assert {json.dumps(other["values"]) for other in same} == {json.dumps(trial["values"])}


def test_failed_trials_are_told_and_tried_again_by_the_next_launch(search: Callable[..., int]) -> None:
    def compute(cfg: Any) -> dict[str, Any]:
        return {"state": "failed", "error": "no luck"} if cfg.mapping.tau_r == 0.5 else driver.result(cfg)

    overrides = ("mapping.tau_r=0.25,0.5", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random")
    assert search(*overrides, compute=compute) == 1
    found = trials()
    bad = [trial["number"] for trial in found if trial["state"] == "failed"]
    assert len(found) == 6 and 1 < len(bad) < 6
    assert found[bad[0]]["error"] == "no luck"
    # in one launch, settings that have failed are not run again
    assert found[bad[1]]["error"] == f"the same settings as trial {bad[0]}, which failed"
    assert len(starts()) == 2
    # unless asked not to, the next launch repeats them; each counts once
    assert search(*overrides, "sweep.retry_failed=false") == 1
    assert trials() == found
    assert search(*overrides) == 0
    again = trials()[6:]
    assert [trial["retry_of"] for trial in again] == bad
    assert {trial["state"] for trial in again} == {"done"}
    assert len(starts()) == 3


@pytest.mark.parametrize(("limit", "number"), [("sweep.max_failures=3", 3), ("sweep.fail_fast=true", 1)])
def test_so_many_failures_end_it(
    search: Callable[..., int], limit: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(TAU_F, limit, compute=lambda cfg: {"state": "failed", "error": "no luck"}) == 1
    assert [trial["state"] for trial in trials()] == ["failed"] * number
    assert f"ended early: {number} failed" in capsys.readouterr().out


def test_values_that_make_no_configuration_are_failed_trials(search: Callable[..., int]) -> None:
    """w_min above w_max is refused, and no reason to end the others."""
    overrides = ("mapping.forget.w_min=interval(0.1,2)", "mapping.forget.w_max=1", "hydra.sweeper.n_trials=8")
    assert search(*overrides) == 1
    found = trials()
    bad = [trial for trial in found if trial["params"]["mapping.forget.w_min"] > 1]
    assert 0 < len(bad) < 8
    assert {trial["number"] for trial in bad} == {trial["number"] for trial in found if trial["state"] == "failed"}
    assert all("need 0 <= w_min <= w_max" in trial["error"] for trial in bad)


def test_trials_of_an_interrupted_batch_go_on(search: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    launch = driver.make_launch()

    def interrupted(sweep: Any, **rest: Any) -> int:
        sweep.cells = sweep.cells[:1]
        launch(sweep)
        return 130

    overrides = (TAU_F, "hydra.sweeper.n_trials=3", "hydra.sweeper.batch_size=3")
    monkeypatch.setattr(driver, "make_launch", lambda compute: interrupted)
    assert search(*overrides) == 130
    before = trials()
    assert [trial["state"] for trial in before] == ["done", "running", "running"]
    monkeypatch.setattr(driver, "make_launch", lambda compute: launch)
    assert search(*overrides) == 0
    assert [trial["params"] for trial in trials()] == [trial["params"] for trial in before]
    assert len(starts()) == 3


# What is refused


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials: need at least 1, got 0"),
        (["hydra.sweeper.sampler=tpee"], "got tpee; did you mean tpe?"),
        (["hydra.sweeper.directions={asr_seen: down}"], "hydra.sweeper.directions.asr_seen: need one of minimize, max"),
        (["hydra.sweeper.directions=asr_seen"], "need {METRIC: minimize | maximize}, got asr_seen"),
        (["hydra.sweeper.pruner=median"], "hydra.sweeper.pruner: need one direction, got asr_seen, ppl_clean"),
        (["hydra.sweeper.prune_metric=x"], "is looked at by a pruner alone"),
        (
            ["hydra.sweeper.pruner=median", "hydra.sweeper.directions={a: minimize}"],
            "hydra.sweeper.prune_metric: need a number that unlearning logs",
        ),
        (["sweep.where=seed < 1"], "sweep.where: optuna picks the cells"),
        (["sweep.zip=[[a,b]]"], "sweep.zip: optuna picks"),
        (["sweep.detach=true"], "sweep.detach: a search has to wait"),
        (["mapping.tau_f=interval(-3,-2)"], "need tau_f"),
    ],
)
def test_settings_are_checked_before_anything_runs(
    search: Callable[..., int], overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(TAU_F, *overrides) == 2
    assert said in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_a_missing_metric_is_named_with_those_there_are(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(TAU_F, "hydra.sweeper.directions={asr_sen: minimize}") == 2
    shown = capsys.readouterr().err
    assert "need metrics of result.json, got asr_sen; there are asr_seen, ppl_clean" in shown
    assert len(starts()) == 1


def test_another_search_in_the_same_folder_is_refused(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(TAU_F, "hydra.sweeper.n_trials=1") == 0
    for other, word in (
        ([TAU_F, "hydra.sweeper.directions={ppl_clean: minimize}"], "directions"),
        (["mapping.tau_f=interval(0.1,3)"], "space"),
        ([TAU_F, "unlearning=ga"], "fixed settings"),
    ):
        capsys.readouterr()
        assert search(*other) == 2
        assert f"need the {word} of its earlier trials" in capsys.readouterr().err
    assert len(starts()) == 1


def test_without_optuna_it_says_how_to_get_it(
    search: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert search(TAU_F) == 2
    assert capsys.readouterr().err.count("pip install 'rapidun[optuna]'") == 1


# For real


@pytest.mark.slow
def test_four_real_trials_with_all_files_of_a_sweep(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "sweep.py"), "-m", "debug=fast", "hydra/sweeper=rapidun_optuna", "sweep.name=s",
        "mapping=rapidun", "mapping.tau_f=interval(0.1,2)", "unlearning.learning_rate=tag(log,interval(1e-4,1e-2))",
        "hydra.sweeper.batch_size=2", "tracking=none",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for number in (2, 4):
        done = subprocess.run(
            [*command, f"hydra.sweeper.n_trials={number}"], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
    found = trials(tmp_path)
    assert [trial["state"] for trial in found] == ["done"] * 4
    sweep = tmp_path / "outputs/sweeps/s"
    plan = json.loads((sweep / "sweep.json").read_text())
    assert [cell["hash"] for cell in plan["cells"]] == [trial["cell"] for trial in found]
    assert all(cell["artifacts"] for cell in plan["cells"])
    for trial in found:
        result = json.loads((sweep / trial["cell"] / "result.json").read_text())
        assert trial["values"] == {name: result[name] for name in ("asr_seen", "ppl_clean")}
        settings = json.loads((sweep / trial["cell"] / "settings.json").read_text())
        assert settings["mapping"]["tau_f"] == trial["params"]["mapping.tau_f"]
        assert "optuna" not in (sweep / trial["cell"] / "command.txt").read_text()
    # poison and influence, which no swept key touches, were made once
    store = tmp_path / "outputs/store"
    assert [len(list((store / stage).glob("*/manifest.json"))) for stage in ("poison", "influence")] == [1, 1]
    assert "search: 4 trials: 4 done" in done.stdout and "4 cells: 4 done" in done.stdout
    shown = subprocess.run(
        [sys.executable, str(ROOT / "sweep.py"), "sweep", "status", str(sweep)], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "4 of 4 cells: 4 done" in shown.stdout
