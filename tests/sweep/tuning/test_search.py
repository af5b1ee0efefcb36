"""The study in the journal: what is picked, and what a killed process leaves."""

from pathlib import Path

import pytest

from rapidun.base.errors import ConfigError
from rapidun.config.cells import search_space
from rapidun.sweep.pruning import JOURNAL, open_storage
from rapidun.sweep.tuning.search import SAMPLERS, Search, Tuning
from rapidun.sweep.tuning.space import Space

optuna = pytest.importorskip("optuna")
OVERRIDES = (
    "hydra/sweeper=rapidun_optuna", "mapping.tau_f=interval(0.1,2)", "mapping.tau_r=range(0.25,2,0.25)",
    "mapping=rapidun,uniform", "unlearning.max_steps=int(interval(1,99))",
)  # fmt: skip


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(search_space(OVERRIDES).axes)


def run(folder: Path, space: Space, n_trials: int, **settings: object) -> list[tuple[object, ...]]:
    """A launch up to `n_trials`: tell a formula of the parameters; return what was picked so far."""
    folder.mkdir(exist_ok=True)
    search = Search(folder, Tuning(n_trials=n_trials, **settings), space, fixed={"seed": 0})  # type: ignore[arg-type]
    while batch := search.next_batch():
        for trial in batch:
            found = space.values(trial.params)
            x, y = found["mapping.tau_f"], found["mapping.tau_r"]
            search.tell(trial, "COMPLETE", values=[(x - 0.7) ** 2 + y, 1 / x + (y - 1) ** 2])
    return [tuple(trial.params[axis.key] for axis in space.axes) for trial in search.trials()]


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_seed_decides_what_is_picked(tmp_path: Path, space: Space, sampler: str) -> None:
    """Also where the search is run in parts: no sampler begins anew. 14 trials: past the random start of 10."""
    if sampler in ("gp", "qmc"):
        pytest.importorskip("scipy")
    whole = run(tmp_path / "a", space, 14, sampler=sampler, seed=1)
    for number in (5, 12, 14):
        parts = run(tmp_path / "b", space, number, sampler=sampler, seed=1)
    assert parts == whole
    assert len(set(whole)) > 12
    assert run(tmp_path / "c", space, 14, sampler=sampler, seed=2) != whole


def test_a_batch_that_was_cut_short_is_filled_up_and_not_mixed_with_the_next(tmp_path: Path, space: Space) -> None:
    """Batches of 4: killed after asking for 2 of them, 2 more are asked for; after telling 2 of 4, none."""
    search = Search(tmp_path, Tuning(n_trials=6, batch_size=4), space, fixed={"seed": 0})
    for _ in range(2):
        search.study.ask()
    search = Search(tmp_path, Tuning(n_trials=6, batch_size=4), space, fixed={"seed": 0})
    batch = search.next_batch()
    assert [trial.number for trial in batch] == [0, 1, 2, 3]
    assert all(trial.params.keys() == space.distributions.keys() for trial in batch)
    for trial in batch[:2]:
        search.tell(trial, "COMPLETE", values=[1.0, 1.0])
    left = Search(tmp_path, Tuning(n_trials=6, batch_size=4), space, fixed={"seed": 0}).next_batch()
    assert [trial.number for trial in left] == [2, 3]
    assert [trial.params for trial in left] == [trial.params for trial in batch[2:]]
    for trial in left:
        search.tell(trial, "COMPLETE", values=[1.0, 1.0])
    assert [trial.number for trial in search.next_batch()] == [4, 5]


def test_a_killed_process_may_leave_half_a_line_and_half_a_trial(tmp_path: Path, space: Space) -> None:
    run(tmp_path, space, 2)
    study = optuna.load_study(study_name="tuning", storage=open_storage(tmp_path / JOURNAL))
    half = study.ask()
    half.suggest_float("mapping.tau_f", 0.1, 2)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code":5,"wor')
    picked = run(tmp_path, space, 4)
    assert len(picked) == 4
    assert picked[2][0] == half.params["mapping.tau_f"]


def test_failed_trials_are_asked_for_once_more(tmp_path: Path, space: Space) -> None:
    search = Search(tmp_path, Tuning(n_trials=3, batch_size=3), space, fixed={"seed": 0})
    first, second, third = search.next_batch()
    search.tell(first, "FAIL", notes={"error": "killed", "final": False})
    search.tell(second, "FAIL", notes={"error": "NaN", "final": True})
    search.tell(third, "COMPLETE", values=[1.0, 1.0])
    assert search.next_batch() == []
    assert search.try_again() == [0]
    assert search.try_again() == []
    [again] = search.next_batch()
    assert (again.number, again.params) == (3, first.params)
    search.tell(again, "COMPLETE", values=[1.0, 1.0])
    assert [trial.number for trial in search.finished()] == [1, 2, 3]
    assert search.next_batch() == []


def test_the_study_of_another_search_is_refused(tmp_path: Path, space: Space) -> None:
    run(tmp_path, space, 1)
    with pytest.raises(
        ConfigError, match=r"need the fixed settings of its earlier trials, got others \(seed: 0 there, 1 now\)"
    ):
        Search(tmp_path, Tuning(), space, fixed={"seed": 1})
    with pytest.raises(ConfigError, match="need the directions of its earlier trials"):
        Search(tmp_path, Tuning(directions={"asr_seen": "minimize"}), space, fixed={"seed": 0})
