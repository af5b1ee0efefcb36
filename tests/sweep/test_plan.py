"""The plan of a sweep: shared artifacts once, before the cells that need them; nothing that is there already."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.files import sha256_json, write_jsonl
from rapidun.base.store import Store
from rapidun.config.cells import Cell, compose_cells
from rapidun.report.sweep.identity import SEEDED, _swapped
from rapidun.stages.recipe import Recipe
from rapidun.sweep.plan import Plan, Planner, plan_cells, without_misfits

FAST = ["debug=fast"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def planned(store: Store, *overrides: str) -> tuple[list[Cell], Plan]:
    cells = compose_cells([*FAST, f"store_dir={store.root}", *overrides])
    planner = Planner(store)
    assert plan_cells(planner, cells) == []
    return cells, planner.plan(cells)


def pretend(store: Store, plan: Plan, *kinds: str) -> None:
    """Publish artifacts of these kinds without running their stages."""

    def build(out: Path, work: Path) -> dict[str, Any]:
        (out / "x").write_text("x")
        return {}

    for node in plan.nodes.values():
        if node.recipe.kind in kinds:
            store.make(node.recipe.key, build)


def test_what_cells_share_is_made_once_before_them(store: Store) -> None:
    """2 tau x 2 objectives x 2 seeds: one poison, then influence and the evaluation before, then eight cells."""
    cells, plan = planned(store, "mapping=rapidun", "mapping.tau_f=0.3,0.7", "unlearning=rapidun,ga", "seed=0,1")
    by_id = {job.id.rpartition("-")[0]: job for job in plan.jobs}
    assert [job.stage for job in plan.jobs if job.stage] == ["poison", "influence", "evaluation"]
    assert [job.wave for job in plan.jobs] == [1, 2, 2] + [3] * 8
    assert by_id["influence"].needs == [by_id["poison"].id]
    assert by_id["evaluation"].needs == [by_id["poison"].id]
    for job in plan.jobs:
        if job.cells:
            # poison is an ancestor of both, so it is not named again
            assert sorted(job.needs) == sorted([by_id["influence"].id, by_id["evaluation"].id])
    # both objectives and both seeds read the mapping of their tau: it is made behind the influence
    kinds = [node.recipe.kind for node in by_id["influence"].nodes]
    assert kinds == ["influence", "mapping", "mapping"]
    assert [cell.hash for job in plan.jobs for cell in job.cells] == [cell.hash for cell in cells]


def test_every_artifact_of_a_cell_is_in_exactly_one_job(store: Store) -> None:
    _, plan = planned(store, "mapping=rapidun,uniform", "mapping.tau_f=0.3,0.7", "unlearning=rapidun,retrain")
    made: list[str] = [node.recipe.id for job in plan.jobs for node in job.nodes]
    assert len(made) == len(set(made))
    for node in plan.nodes.values():
        heavy = node.recipe.kind not in ("data", "mapping", "model")
        if heavy and len(node.users) > 1:
            assert node.recipe.id in made
        elif heavy and node.found is None:
            assert node.recipe.id not in made  # its only cell makes it


def test_a_setting_that_does_not_matter_repeats_nothing(store: Store) -> None:
    """uniform ignores tau: both cells link the same unlearning and the same evaluations."""
    cells, plan = planned(store, "mapping=uniform", "mapping.tau_f=0.3,0.7")
    first, second = (plan.artifacts[cell.hash] for cell in cells)
    assert first == second
    assert [job.stage for job in plan.jobs] == ["poison", "unlearning", "evaluation", "evaluation", None, None]
    assert [job.wave for job in plan.jobs] == [1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (["mapping=uniform"], {"data", "model", "poison", "mapping", "unlearning", "evaluation"}),
        (["mapping=file"], {"data", "model", "poison", "mapping", "unlearning", "evaluation"}),
        (["mapping=loreun_static"], {"data", "model", "poison", "losses", "mapping", "unlearning", "evaluation"}),
        (["mapping=uniform", "unlearning=influence_step"],
         {"data", "model", "poison", "curvature", "mapping", "edit", "evaluation"}),
        (["unlearning=retrain"], {"data", "model", "poison", "evaluation"}),
        # asked for by itself, or as the last one, a stage is run for its own sake
        (["mapping=uniform", "stages=[data,poison,influence]"], {"data", "model", "poison", "influence"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_no_stage_is_planned_that_nothing_reads(
    store: Store, tmp_path: Path, overrides: list[str], kinds: set[str]
) -> None:
    if overrides == ["mapping=file"]:
        for group, number in (("forget", 6), ("retain", 18)):
            rows = [{"index": place, "weight": 1.0} for place in range(number)]
            write_jsonl(tmp_path / f"{group}.jsonl", rows)
            overrides = [*overrides, f"mapping.{group}={tmp_path / group}.jsonl"]
    _, plan = planned(store, *overrides)
    assert {node.recipe.kind for node in plan.nodes.values()} == kinds


def test_a_grid_of_mappings_computes_influence_for_those_that_read_it(store: Store) -> None:
    cells, plan = planned(store, "mapping=uniform,rapidun,oracle")
    assert ["influence" in plan.artifacts[cell.hash] for cell in cells] == [False, True, False]
    # one cell alone needs it: no job of its own
    assert [job.stage for job in plan.jobs if job.stage] == ["poison", "evaluation"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["mapping=recommended,shuffled,loreun_static", "unlearning=rapidun,retrain"],
        ["unlearning=influence_step,task_vector,repselect,fisher"],
        ["evaluation=attacks", "poison.retrain=true"],
        ["unlearning.token_weights=influence"],
    ],
    ids=" ".join,
)
def test_seeds_fold_by_fingerprints_without_the_seed(store: Store, overrides: list[str]) -> None:
    """rapidun/report/sweep/identity.py knows where the run's own seed stands, whatever an artifact is made from."""

    def seedless(recipe: Recipe) -> str:
        names = {need.fingerprint: seedless(need) for need in recipe.needs}
        own = {key: value for key, value in recipe.inputs.items() if key != "seed" or recipe.kind not in SEEDED}
        return sha256_json({"kind": recipe.kind, "inputs": _swapped(own, names)})

    cells, plan = planned(store, *overrides, "seed=0,1")
    recipes = {id: node.recipe for id, node in plan.nodes.items()}
    for cell, other in pairwise(cells):
        if cell.axes | {"seed": ""} == other.axes | {"seed": ""}:
            one, two = plan.artifacts[cell.hash], plan.artifacts[other.hash]
            assert {link: seedless(recipes[id]) for link, id in one.items()} == {
                link: seedless(recipes[id]) for link, id in two.items()
            }
    assert any(plan.artifacts[cells[0].hash][link] != id for link, id in plan.artifacts[cells[1].hash].items())


def test_a_pattern_leaves_out_what_cannot_run_here(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """bm25s is not installed: of influence=glob(*) that one value is left out, and said to be."""
    cells = compose_cells(
        [*FAST, f"store_dir={store.root}", "influence=glob([bm25,exact])", "stages=[data,poison,influence]"]
    )
    assert [cell.axes["influence"] for cell in cells] == ["bm25", "exact"]
    monkeypatch.setattr("rapidun.stages.checks.find_spec", lambda name: None if name == "bm25s" else object())
    planner = Planner(store)
    kept, notes = without_misfits(planner, cells)
    assert [cell.axes["influence"] for cell in kept] == ["exact"]
    (note,) = notes
    assert note.startswith("influence=glob([bm25,exact]) leaves out bm25: ") and "rapidun[bm25]" in note
    assert plan_cells(planner, kept) == []
    # typed one by one they are asked for
    named = compose_cells([*FAST, f"store_dir={store.root}", "influence=bm25,exact", "stages=[data,poison,influence]"])
    assert without_misfits(Planner(store), named) == (named, [])


def test_what_is_there_is_not_planned(store: Store) -> None:
    _, plan = planned(store, "seed=0,1")
    pretend(store, plan, "poison", "model", "influence")
    _, again = planned(store, "seed=0,1")
    assert [job.stage for job in again.jobs] == ["evaluation", None, None]
    assert again.jobs[0].wave == 1
    # the shared mapping can be made at once: its influence is there
    assert [node.recipe.kind for node in again.at_once] == ["mapping"]
    assert again.counts()["influence"] == (1, 1)
    pretend(store, again, "mapping", "unlearning", "evaluation")
    _, nothing = planned(store, "seed=0,1")
    assert [(job.stage, job.wave, job.needs) for job in nothing.jobs] == [(None, 1, [])] * 2


def test_one_cell_alone_shares_nothing(store: Store) -> None:
    _, plan = planned(store, "seed=0")
    assert [job.stage for job in plan.jobs] == [None]


def test_cells_of_different_packs_wait_for_their_own_model_only(store: Store) -> None:
    _, plan = planned(store, "data.seed=1,2", "seed=0,1")
    poisons = [job.id for job in plan.jobs if job.stage == "poison"]
    assert len(poisons) == 2
    by_id = {job.id: job for job in plan.jobs}

    def climb(id: str) -> set[str]:
        return {id}.union(*(climb(need) for need in by_id[id].needs))

    for job in plan.jobs:
        if job.cells:
            assert len(climb(job.id) & set(poisons)) == 1


def test_cells_per_job_groups_what_waits_for_the_same(store: Store) -> None:
    _, plan = planned(store, "mapping=rapidun", "mapping.tau_f=0.3,0.7,1.5", "seed=0,1", "resources.cells_per_job=4")
    assert [len(job.cells) for job in plan.jobs if job.cells] == [4, 2]


def test_a_missing_earlier_stage_is_one_fault_before_anything_runs(store: Store) -> None:
    cells = compose_cells([*FAST, f"store_dir={store.root}", "stages=[unlearning]", "seed=0,1"])
    faults = plan_cells(Planner(store), cells)
    assert len(faults) == 1
    assert "need the result of poison" in faults[0] and "store_dir" in faults[0]


def test_faults_of_several_cells_arrive_together(store: Store) -> None:
    cells = compose_cells([*FAST, f"store_dir={store.root}", "model=hf", "model.path=/nowhere/a,/nowhere/b"])
    faults = plan_cells(Planner(store), cells)
    assert len(faults) == 2 and all("/nowhere/" in fault for fault in faults)


def test_the_launch_prefix_keeps_jobs_apart(store: Store) -> None:
    cells = compose_cells([*FAST, f"store_dir={store.root}", "seed=0,1"])
    planner = Planner(store)
    plan_cells(planner, cells)
    assert all(job.id.startswith("r2-") for job in planner.plan(cells, prefix="r2-").jobs)
