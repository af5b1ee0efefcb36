"""Intermediate values from the worker to the pruner, over the journal alone."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.preemption import Pruned
from rapidun.cli import main as cli
from rapidun.config.cells import compose_rows, search_space
from rapidun.sweep.pruning import JOURNAL, TrialObserver, open_storage
from rapidun.sweep.tuning.loop import fixed_settings
from rapidun.sweep.tuning.search import Search, Tuning
from rapidun.sweep.tuning.space import Space

optuna = pytest.importorskip("optuna")
ROOT = Path(cli.__file__).parents[2]
SPACE = ("hydra/sweeper=rapidun_optuna", "mapping.tau_f=interval(0.1,2)")
SETTINGS = {
    "directions": {"ppl_clean": "minimize"}, "pruner": "median", "prune_metric": "val_loss_clean", "sampler": "random",
}  # fmt: skip


def make_search(folder: Path, *, n_trials: int = 6, fixed: dict[str, Any] | None = None, best: float = 1.0) -> Search:
    """A search with five trials that are done; at step 2 they logged `best`, at step 4 half of it."""
    space = Space(search_space(SPACE).axes)
    folder.mkdir(parents=True, exist_ok=True)
    search = Search(folder, Tuning(n_trials=n_trials, **SETTINGS), space, fixed=fixed or {})  # type: ignore[arg-type]
    for number in range(5):
        search.study.add_trial(
            optuna.trial.create_trial(
                params={"mapping.tau_f": 0.2 + number / 10}, distributions=dict(space.distributions), value=1.0,
                intermediate_values={2: best, 4: best / 2},
            )
        )  # fmt: skip
    return search


def order(folder: Path, number: int) -> dict[str, Any]:
    return {
        "journal": str((folder / JOURNAL).absolute()), "number": number, "metric": "val_loss_clean", "pruner": "median"
    }  # fmt: skip


def test_a_trial_above_the_median_is_pruned(tmp_path: Path) -> None:
    """At step 2 the others had 1.0: 0.9 goes on, and 0.6 at step 4, above their 0.5, does not."""
    search = make_search(tmp_path)
    [trial] = search.next_batch()
    observe = TrialObserver(order(tmp_path, trial.number))
    observe("poison", {"val_loss_clean": 99.0}, 2)
    observe("unlearning", {"loss": 99.0}, 2)
    observe("unlearning", {"val_loss_clean": 99.0}, None)
    # before training
    observe("unlearning", {"val_loss_clean": 99.0}, 0)
    observe("unlearning", {"val_loss_clean": 0.9, "loss": 3.0}, 2)
    with pytest.raises(Pruned) as raised:
        observe("unlearning", {"val_loss_clean": 0.6}, 4)
    assert (raised.value.value, raised.value.step) == (0.6, 4)
    # what the search's own process sees
    assert search.trials()[trial.number].intermediate_values == {2: 0.9, 4: 0.6}


def test_steps_passed_again_after_a_restart_are_noted_once(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    [trial] = search.next_batch()
    TrialObserver(order(tmp_path, trial.number))("unlearning", {"val_loss_clean": 0.9}, 2)
    again = TrialObserver(order(tmp_path, trial.number))
    again("unlearning", {"val_loss_clean": 0.9}, 2)
    again("unlearning", {"val_loss_clean": 0.4}, 4)
    assert search.trials()[trial.number].intermediate_values == {2: 0.9, 4: 0.4}


def test_a_trial_that_is_told_already_is_left_alone(tmp_path: Path) -> None:
    search = make_search(tmp_path)
    [trial] = search.next_batch()
    search.tell(trial, "COMPLETE", values=[1.0])
    TrialObserver(order(tmp_path, trial.number))("unlearning", {"val_loss_clean": 99.0}, 2)
    assert search.trials()[trial.number].intermediate_values == {}


def test_only_the_first_of_several_processes_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapidun.base.processes.is_main", lambda: False)
    TrialObserver(order(tmp_path, 0))("unlearning", {"val_loss_clean": 99.0}, 2)
    assert not (tmp_path / JOURNAL).exists()


def report(path: str, number: int, steps: int) -> None:
    observe = TrialObserver({"journal": path, "number": number, "metric": "m", "pruner": "none"})
    for step in range(1, steps + 1):
        observe("unlearning", {"m": float(step)}, step)


def test_workers_that_report_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Four processes, thirty values each, into one file."""
    search = make_search(tmp_path, n_trials=9)
    numbers = [search.next_batch()[0].number for _ in range(1)] + [search.study.ask().number for _ in range(3)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=report, args=(str(tmp_path / JOURNAL), number, 30)) for number in numbers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    study = optuna.load_study(study_name="tuning", storage=open_storage(tmp_path / JOURNAL))
    for number in numbers:
        assert study.trials[number].intermediate_values == {step: float(step) for step in range(1, 31)}


@pytest.mark.slow
@pytest.mark.parametrize(("best", "state"), [(0.001, "pruned"), (1000.0, "done")])
def test_a_real_cell_in_a_process_of_its_own_is_pruned(tmp_path: Path, best: float, state: str) -> None:
    """The trials before it are far better (or worse) at step 2: unlearning ends there (or goes on)."""
    common = ["debug=fast", "tracking=none", "sweep.name=s", "resources.num_threads=1"]
    [first] = compose_rows([[*common, "mapping.tau_f=1.05"]])
    sweep = tmp_path / "outputs/sweeps/s"
    make_search(sweep, fixed=fixed_settings(first), best=best)
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "sweep.py"), "-m", *SPACE, *common, "hydra/launcher=rapidun_local",
            "hydra.sweeper.n_trials=6", "hydra.sweeper.directions={ppl_clean: minimize}", "hydra.sweeper.pruner=median",
            "hydra.sweeper.prune_metric=val_loss_clean", "hydra.sweeper.sampler=random",
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    trial = json.loads((sweep / "tuning.json").read_text())["trials"][5]
    assert trial["state"] == state
    assert json.loads((sweep / trial["cell"] / "status.json").read_text())["state"] == state
    study = optuna.load_study(study_name="tuning", storage=open_storage(sweep / JOURNAL))
    assert list(study.trials[5].intermediate_values) == ([2] if state == "pruned" else [2, 4])
    if state == "pruned":
        assert f"trial 5 (6 of 6): pruned at {study.trials[5].value:g} at step 2" in done.stdout
