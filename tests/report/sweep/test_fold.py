"""Cells fold by what they computed, one result counts once, and marks are given only where they say something."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rapidun.config.compose import compose_config
from rapidun.report.sweep.console import settings_table
from rapidun.report.sweep.data import page_index
from rapidun.report.sweep.exports import read_sweep, write_sweep_summary
from rapidun.report.sweep.finals import final_commands
from rapidun.report.sweep.groups import Group
from rapidun.report.sweep.identity import SEEDED
from rapidun.report.sweep.page import gather
from rapidun.report.sweep.ranking import best_groups, pareto_groups, pareto_metrics
from rapidun.report.sweep.summary import Summary
from rapidun.stages.recipes import KINDS

MakeCell = Callable[..., Path]


def by_label(summary: Summary) -> dict[str, Group]:
    return {group.label: group for group in summary.groups}


def test_launcher_threads_resources_and_paths_do_not_part_cells(tmp_path: Path, made_cell: MakeCell) -> None:
    """Seeds 0 and 1 by one command, seed 2 added by another with its own launcher, threads, store and tracker."""
    sweep = tmp_path / "grid"
    own = ["mapping=rapidun", "unlearning=npo"]
    for seed in (0, 1):
        made_cell(sweep, f"a{seed}", [*own, f"seed={seed}"], {"asr_seen": 0.1}, seed=seed, weights="w")
    more = ["hydra/launcher=joblib", "resources.num_threads=1", "resources=gpu", "store_dir=x", "tracking=wandb"]
    made_cell(sweep, "a2", [*own, *more, "seed=2"], {"asr_seen": 0.4}, seed=2, weights="w")
    made_cell(sweep, "b0", ["mapping=strength", *own[1:], "seed=0"], {"asr_seen": 0.0}, seed=0, weights="v")
    summary = read_sweep(sweep)
    assert {label: group.n for label, group in by_label(summary).items()} == {
        "mapping=rapidun": 3,
        "mapping=strength": 1,
    }
    # the lone seed has the better mean and is marked by nothing
    assert summary.best == {} and summary.pareto == []
    assert [key["name"] for key in page_index(summary, base=sweep)["keys"]] == ["mapping"]


def test_a_setting_that_was_typed_otherwise_folds(tmp_path: Path, made_cell: MakeCell) -> None:
    """The default left out in one launch and typed in another: one setting, under both of its names."""
    sweep = tmp_path / "grid"
    made_cell(sweep, "a", ["unlearning=npo", "seed=0"], {"asr_seen": 0.1}, seed=0, weights="w", method="m")
    typed = ["unlearning=npo", "unlearning.npo.beta=0.1", "seed=1"]
    made_cell(sweep, "b", typed, {"asr_seen": 0.2}, seed=1, weights="w", method="m")
    (group,) = read_sweep(sweep).groups
    assert group.n == 2
    assert group.label == "(defaults) ≡ unlearning.npo.beta=0.1"


def test_weights_that_are_equal_are_one_setting_under_both_names(tmp_path: Path, made_cell: MakeCell) -> None:
    """recommended abstained: its weights are the uniform ones, file for file. Three seeds, not six."""
    sweep = tmp_path / "grid"
    for name, weights in (("recommended", "1"), ("uniform", "1"), ("rapidun", "w")):
        for seed in (0, 1, 2):
            overrides = [f"mapping={name}", "unlearning=npo", f"seed={seed}"]
            result = {"asr_seen": {"1": 0.1, "w": 0.3}[weights] + seed / 100, "ppl_clean": 2.0}
            made_cell(sweep, f"{name}{seed}", overrides, result, seed=seed, weights=weights)
    summary = write_sweep_summary(sweep)
    one = by_label(summary)["mapping=recommended ≡ mapping=uniform"]
    assert (one.n, one.seeds) == (3, ["0", "1", "2"])
    assert one.metrics["asr_seen"].mean == pytest.approx(0.11)
    assert summary.best == {"asr_seen": [one]}
    assert one.value("mapping") == "recommended ≡ uniform"
    # a trial of each of the two methods
    assert {method.name: (method.num_trials, method.best is one) for method in summary.methods} == {
        "mapping=rapidun": (1, False), "mapping=recommended": (1, True), "mapping=uniform": (1, True),
    }  # fmt: skip
    # nothing is tested against itself
    sentences = [one.sentence for one in summary.comparisons]
    assert "mapping=recommended against uniform, Clean prompts, perplexity: one result (3 seeds)." in sentences
    assert {one.num_comparisons for one in summary.comparisons if not one.same} == {2}
    # what evaluates a method's best on test rows has the method's own name
    commands = [line.split(" ")[2] for line in final_commands(summary) if not line.startswith("#")]
    assert commands == ["mapping=rapidun", "mapping=recommended", "mapping=uniform"]
    index = page_index(summary, base=sweep)
    assert [group["values"] for group in index["groups"]] == [["rapidun"], ["recommended ≡ uniform"]]
    assert index["keys"][0]["values"] == ["rapidun", "recommended", "recommended ≡ uniform", "uniform"]
    found = json.loads((sweep / "summary.json").read_text())
    assert found["best"] == {"asr_seen": [["mapping=recommended", "unlearning=npo"]]}
    assert found["groups"][1]["names"] == [
        ["mapping=recommended", "unlearning=npo"],
        ["mapping=uniform", "unlearning=npo"],
    ]
    assert "one result" in (sweep / "summary.md").read_text()
    console = Console(width=100)
    with console.capture() as capture:
        console.print(settings_table(summary))
    assert "names of one result" in capture.get()


def test_drawn_weights_are_equal_only_where_every_seed_says_so(tmp_path: Path, made_cell: MakeCell) -> None:
    """shuffled of equal weights is uniform in both seeds; another draw that is equal in one seed only is not."""
    sweep = tmp_path / "grid"
    weights = {"uniform": ("1", "1"), "shuffled": ("1", "1"), "random": ("1", "r")}
    for name, of_seed in weights.items():
        for seed in (0, 1):
            overrides = [f"mapping={name}", f"seed={seed}"]
            made_cell(
                sweep, f"{name}{seed}", overrides, {"asr_seen": 0.1}, seed=seed, weights=of_seed[seed],
                draws=name != "uniform",
            )  # fmt: skip
    assert sorted(by_label(read_sweep(sweep))) == ["mapping=random", "mapping=shuffled ≡ mapping=uniform"]


def test_seeds_that_change_nothing_count_once(tmp_path: Path, made_cell: MakeCell) -> None:
    """retrain has no seed of the run: three cells are one artifact, and no interval comes of them."""
    sweep = tmp_path / "grid"
    for seed in (0, 1, 2):
        overrides = ["unlearning=retrain", f"seed={seed}"]
        made_cell(
            sweep, f"r{seed}", overrides, {"asr_seen": 0.0}, seed=seed, weights="w", objective="retrain"
        )  # fmt: skip
    (group,) = read_sweep(sweep).groups
    assert (group.n, group.seeds) == (1, ["0", "1", "2"])
    assert group.metrics["asr_seen"].low is None


def test_a_failed_cell_and_one_without_its_store_belong_to_their_setting(
    tmp_path: Path, made_cell: MakeCell, new_cell: MakeCell
) -> None:
    sweep = tmp_path / "grid"
    made_cell(sweep, "a", ["mapping=x", "seed=0"], {"asr_seen": 0.1}, seed=0, weights="w")
    new_cell(sweep / "b", ["mapping=x", "resources=gpu", "seed=1"], {"asr_seen": 0.3})
    new_cell(sweep / "c", ["mapping=x", "seed=2"], None, "boom")
    summary = read_sweep(sweep)
    (group,) = summary.groups
    assert group.n == 2 and group.metrics["asr_seen"].mean == pytest.approx(0.2)
    assert len({cell.group for cell in summary.cells}) == 1


def test_sweeps_that_are_compared_stand_side_by_side(tmp_path: Path, made_cell: MakeCell) -> None:
    """One result in two sweeps is two rows: the reader asked what each came to."""
    for name in ("one", "two"):
        made_cell(tmp_path / name, "a", ["mapping=x", "seed=0"], {"asr_seen": 0.1}, seed=0, weights="w")
    labels = [group.label for group in gather([tmp_path / "one", tmp_path / "two"]).groups]
    assert labels == ["source=one", "source=two"]


def test_files_that_changed_between_two_launches_part_equal_overrides(tmp_path: Path, made_cell: MakeCell) -> None:
    sweep = tmp_path / "grid"
    made_cell(sweep, "a", ["mapping=file", "seed=0"], {"asr_seen": 0.1}, seed=0, weights="v")
    made_cell(sweep, "b", ["mapping=file", "seed=1"], {"asr_seen": 0.2}, seed=1, weights="w", method="later")
    assert sorted(by_label(read_sweep(sweep))) == ["mapping=file", "mapping=file (other inputs, 2)"]


# marks


def groups_of(tmp_path: Path, new_cell, values: dict[str, list[dict[str, float]]]) -> Summary:
    for name, results in values.items():
        for seed, result in enumerate(results):
            new_cell(tmp_path / f"{name}{seed}", [f"mapping={name}", f"seed={seed}"], result)
    return read_sweep(tmp_path)


def test_all_ties_are_marked(tmp_path: Path, new_cell: MakeCell) -> None:
    """0.1 + 0.2 and 0.2 + 0.1 in another order differ in the last bit alone."""
    values = {"a": (0.1, 0.2, 0.3), "b": (0.3, 0.2, 0.1), "c": (0.3, 0.3, 0.3)}
    found = {name: [{"asr_seen": one} for one in values[name]] for name in values}
    summary = groups_of(tmp_path, new_cell, found)
    assert [group.label for group in summary.best["asr_seen"]] == ["mapping=a", "mapping=b"]
    assert [bool(summary.best_for(group)) for group in summary.groups] == [True, True, False]


def test_nothing_is_marked_where_nothing_differs(tmp_path: Path, new_cell: MakeCell) -> None:
    values = {name: [{"asr_seen": 0.0, "ppl_clean": 2.0, "exact_match_clean": 1.0}] * 2 for name in "ab"}
    summary = groups_of(tmp_path, new_cell, values)
    assert (summary.best, summary.pareto) == ({}, [])


def test_one_setting_is_no_best(tmp_path: Path, new_cell: MakeCell) -> None:
    summary = groups_of(tmp_path, new_cell, {"a": [{"asr_seen": 0.0, "ppl_clean": 2.0}] * 2})
    assert (summary.best, summary.pareto) == ({}, [])


def test_a_lone_seed_is_marked_only_among_lone_seeds(tmp_path: Path, new_cell: MakeCell) -> None:
    good, middle, bad = ({"asr_seen": one, "ppl_clean": 2.0 + one} for one in (0.0, 0.1, 0.2))
    beside = groups_of(tmp_path / "beside", new_cell, {"a": [good], "b": [middle] * 3, "c": [bad] * 2})
    assert [group.label for group in beside.best["asr_seen"]] == ["mapping=b"]
    assert [group.label for group in beside.pareto] == ["mapping=b"]
    assert [one.best.label for one in beside.methods] == ["mapping=a", "mapping=b", "mapping=c"]
    alone = groups_of(tmp_path / "alone", new_cell, {"a": [good], "b": [middle], "c": [bad]})
    assert [group.label for group in alone.best["asr_seen"]] == ["mapping=a"]
    assert pareto_groups(alone.groups, pareto_metrics(alone.groups)) == alone.pareto != []
    assert best_groups(alone.groups) == alone.best


def test_the_kinds_with_the_runs_own_seed_are_those_whose_fingerprints_it_changes() -> None:
    """What identity.py must know of the stages, held against them in tests/sweep/test_plan.py by a whole plan."""
    assert set(SEEDED) <= set(KINDS)
    assert compose_config(["seed=1"]).seed == 1
