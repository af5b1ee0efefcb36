"""Offline runs of real W&B, read back with W&B's own reader."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapidun.base.preemption import Preempted, Pruned
from rapidun.pipeline.tracking.wandb.run import LoggedRun, clean_id, offline_id
from rapidun.pipeline.tracking.wandb.sink import WandbSink, cell_id

SECRET = "f00dfacef00dfacef00dfacef00dfacef00dface"
FINAL = {"name": "run", "asr_seen": 0.25, "before.asr_seen": 1.0, "seconds.poison": 2.0}


def fill_mapping(out: Path) -> None:
    for group in ("forget", "retain"):
        rows = [{"index": n, "id": f"{group}{n}", "weight": 0.5 + n} for n in range(4)]
        (out / f"{group}_weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fill_influence(out: Path) -> None:
    sizes = {"ff": (2, 2), "fr": (2, 3), "rf": (3, 2), "rr": (3, 3)}
    save_file({name: np.full(size, 0.5, np.float32) for name, size in sizes.items()}, out / "scores.safetensors")
    (out / "ids.json").write_text("{}")


def write_generations(run_dir: Path) -> None:
    (run_dir / "evaluation").mkdir()
    row = {"set": "seen", "prompt": "<b>hey</b>", "before": "moon", "after": "blue", "keyword_before": True}
    rows = [{**row, "keyword_after": False, "likelihood_after": None}, {**row, "likelihood_after": True}]
    (run_dir / "evaluation" / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def sweep(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two cells of a sweep whose stages interleave in one process, one of them failing, a preempted one, a restart."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_SECRET", SECRET)
        patch.setattr(sys, "argv", ["sweep.py", f"cluster.environment.TOKEN={SECRET}"])
        cfg = tools.make_config(root, "wandb")
        cfg.tracking.tags = ["paper"]
        cfg.tracking.log_artifacts = True
        cfg.cluster.environment = {"TOKEN": SECRET}
        first = tools.make_cell(root, "aaaa", "mapping=uniform", "seed=1")
        second = tools.make_cell(root, "bbbb", "mapping=rapidun", "seed=2")
        status = {
            "git_commit": "1234abcd-dirty",
            "stages": {"mapping": {"artifacts": {"mapping": "mapping/" + "1" * 16}}},
        }
        (first / "status.json").write_text(json.dumps(status))
        one, notes = tools.open_quietly(cfg, first)
        tools.run_stage(one, root, "poison", steps=[1, 2, 3])
        cfg_two = tools.make_config(root, "wandb")
        two, _ = tools.open_quietly(cfg_two, second)
        tools.run_stage(
            one,
            root,
            "mapping",
            steps=[],
            fingerprint="1" * 16,
            needs=[f"poison/{tools.FINGERPRINT}"],
            fill=fill_mapping,
        )
        tools.run_stage(two, root, "influence", steps=[], fingerprint="2" * 16, fill=fill_influence)
        tools.run_stage(one, root, "unlearning", steps=[1, 2], fingerprint="3" * 16)
        tools.run_stage(two, root, "unlearning", steps=[1, 2, 3, 4], fingerprint="4" * 16, fault=ValueError(SECRET))
        (first / "mapping").symlink_to(root / "store" / "mapping" / ("1" * 16))
        write_generations(first)
        two.finish({}, failed=ValueError(SECRET), run_dir=second)
        one.finish(FINAL, failed=False, run_dir=first)
        # a preempted cell, and the same one queued again: its checkpoint was that of step 2
        third = tools.make_cell(root, "cccc", "seed=3")
        killed, _ = tools.open_quietly(cfg_two, third)
        tools.run_stage(killed, root, "poison", steps=[1, 2, 3], fingerprint="5" * 16, fault=Preempted("time"))
        killed.finish({}, failed=Preempted("time"), run_dir=third)
        again, _ = tools.open_quietly(cfg_two, third, restarts=1)
        tools.run_stage(again, root, "poison", steps=[3, 4], fingerprint="5" * 16)
        again.finish({"asr_seen": 0.5}, failed=Pruned(0.5, 4), run_dir=third)
    cells = {name: cell_id(cfg, root / name) for name in ("aaaa", "bbbb", "cccc")}
    return {"root": root, "runs": tools.read_all(root), "cells": cells, "notes": notes, "trackers": [one, two, again]}


def test_one_run_for_each_cell_and_each_stage(tools: Any, sweep: dict[str, Any]) -> None:
    found = {id: (read.run["run_group"], read.run["job_type"]) for id, read in sweep["runs"].items()}
    stages = {
        f"poison-{tools.FINGERPRINT}": "poison",
        f"mapping-{'1' * 16}": "mapping",
        f"influence-{'2' * 16}": "influence",
        f"unlearning-{'3' * 16}": "unlearning",
        f"unlearning-{'4' * 16}": "unlearning",
        f"poison-{'5' * 16}": "poison",
        f"poison-{'5' * 16}-r1": "poison",
    }
    cells = {**dict.fromkeys(sweep["cells"].values(), "cell"), f"{sweep['cells']['cccc']}-r1": "cell"}
    assert found == {id: ("sweep1", job_type) for id, job_type in {**stages, **cells}.items()}
    assert all(not tracker.warnings for tracker in sweep["trackers"])


def test_cells_in_one_process_do_not_mix(tools: Any, sweep: dict[str, Any]) -> None:
    runs, cells = sweep["runs"], sweep["cells"]
    one, two = runs[cells["aaaa"]], runs[cells["bbbb"]]
    assert one.curve("unlearning/loss") == [(1, 1.0), (2, 0.5)]
    assert two.curve("unlearning/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert one.curve("poison/loss") == runs[f"poison-{tools.FINGERPRINT}"].curve("poison/loss")
    assert two.curve("poison/loss") == []
    assert runs[f"unlearning-{'4' * 16}"].curve("unlearning/loss") == two.curve("unlearning/loss")


def test_stages_have_steps_of_their_own(sweep: dict[str, Any]) -> None:
    defined = sweep["runs"][sweep["cells"]["aaaa"]].of("metric")
    axes = {metric["glob_name"]: metric["step_metric"] for metric in defined if "glob_name" in metric}
    assert axes["poison/*"] == "poison/step"
    assert axes["unlearning/*"] == "unlearning/step"


def test_config_is_the_resolved_one(tools: Any, sweep: dict[str, Any]) -> None:
    one = sweep["runs"][sweep["cells"]["aaaa"]]
    assert one.config["mapping"]["tau_f"] == 0.7
    assert one.config["unlearning"]["objective"] == "rapidun"
    assert one.config["choices"] == {"mapping": "uniform"}
    assert one.config["git"] == {"commit": "1234abcd", "dirty": True}
    assert one.run["git"]["commit"] == "1234abcd"
    assert one.run["tags"] == ["paper"]
    assert one.run["display_name"] == "mapping=uniform seed=1"
    stage = sweep["runs"][f"mapping-{'1' * 16}"].config["execution"]
    assert stage["inputs"] == {"settings": {"lr": 0.1}}
    assert stage["needs"] == [f"poison/{tools.FINGERPRINT}"]


def test_summary_has_the_names_of_the_result(sweep: dict[str, Any]) -> None:
    one = sweep["runs"][sweep["cells"]["aaaa"]]
    assert {name: one.summary[name] for name in FINAL} == FINAL
    assert one.summary["state"] == "done"
    stage = sweep["runs"][f"unlearning-{'3' * 16}"]
    assert (stage.summary["final.loss"], stage.summary["seconds"]) == (0.25, 2.0)


def test_endings_are_marked(sweep: dict[str, Any]) -> None:
    runs, cells = sweep["runs"], sweep["cells"]
    ended = {id: (read.summary["state"], read.exit_code, bool(read.of("preempting"))) for id, read in runs.items()}
    assert ended[cells["aaaa"]] == ("done", 0, False)
    assert ended[cells["bbbb"]] == ("failed", 1, False)
    assert ended[f"unlearning-{'4' * 16}"] == ("failed", 1, False)
    assert ended[cells["cccc"]] == ended[f"poison-{'5' * 16}"] == ("preempted", 1, True)
    assert ended[f"{cells['cccc']}-r1"] == ("pruned", 0, False)
    assert runs[cells["bbbb"]].summary["error"] == "ValueError: (hidden)"


def test_a_restart_has_the_whole_curve_and_it_never_goes_back(sweep: dict[str, Any]) -> None:
    for id in (f"{sweep['cells']['cccc']}-r1", f"poison-{'5' * 16}-r1"):
        assert [step for step, _ in sweep["runs"][id].curve("poison/loss")] == [1, 2, 3, 4]


def test_media(sweep: dict[str, Any]) -> None:
    runs, cells = sweep["runs"], sweep["cells"]
    for id in (f"mapping-{'1' * 16}", cells["aaaa"]):
        assert sum(runs[id].summary["mapping/weights_forget.values"]) == 4
    assert runs[f"influence-{'2' * 16}"].summary["influence/heat_map._type"] == "image-file"
    assert runs[cells["aaaa"]].summary["evaluation/generations._type"] == "table-file"
    [table] = [json.loads(path.read_text()) for path in sweep["root"].rglob("generations*.table.json")]
    at = table["columns"].index
    assert [row[at("prompt")] for row in table["data"]] == ["<b>hey</b>"] * 2
    assert [row[at("likelihood_after")] for row in table["data"]] == [None, True]


def test_artifacts_are_linked_from_stage_to_stage(tools: Any, sweep: dict[str, Any]) -> None:
    runs, cells = sweep["runs"], sweep["cells"]
    poison, mapping = f"poison-{tools.FINGERPRINT}", f"mapping-{'1' * 16}"

    def linked(id: str, *, used: bool) -> list[str]:
        return [a["name"] for a in runs[id].of("artifact") if bool(a.get("use_after_commit")) == used]

    assert linked(poison, used=False) == [poison]
    assert linked(mapping, used=True) == [poison]
    assert linked(mapping, used=False) == [mapping]
    assert linked(cells["aaaa"], used=True) == [mapping]
    files = [entry["path"] for a in runs[mapping].of("artifact") for entry in a["manifest"]["contents"]]
    assert {"forget_weights.jsonl", "retain_weights.jsonl", "manifest.json"} <= set(files)
    # made without log_artifacts
    assert linked(f"influence-{'2' * 16}", used=False) == []


def test_no_secret_is_written_anywhere(sweep: dict[str, Any]) -> None:
    files = [path for path in sweep["root"].rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_offline_runs_say_once_how_to_upload_them(sweep: dict[str, Any]) -> None:
    [note] = sweep["notes"]
    assert note.startswith("W&B: 4 offline runs; to upload later: wandb sync ")
    assert f"{sweep['root'] / 'aaaa' / 'wandb'}/offline-run-*" in note


def test_cell_ids(tools: Any, tmp_path: Path) -> None:
    cfg = tools.make_config(tmp_path, "wandb")
    assert cell_id(cfg, tmp_path / "aaaa") == cell_id(cfg, tmp_path / "aaaa")
    assert cell_id(cfg, tmp_path / "aaaa").startswith("cell-aaaa-")
    other = tools.make_config(tmp_path, "wandb", sweep="sweep2")
    assert cell_id(other, tmp_path / "aaaa") != cell_id(cfg, tmp_path / "aaaa")
    alone = tools.make_config(tmp_path, "wandb", sweep=None)
    before = cell_id(alone, tmp_path / "aaaa")
    alone.tracking.tags, alone.store_dir = ["x"], "elsewhere"
    assert cell_id(alone, tmp_path / "aaaa") == before
    alone.seed += 1
    assert cell_id(alone, tmp_path / "aaaa") != before


def test_ids_hold_only_what_wandb_takes(tmp_path: Path) -> None:
    assert clean_id("poison:a;b,c#d?e/f'g-1.5_x") == "poison-a-b-c-d-e-f-g-1.5_x"
    (tmp_path / "offline-run-20260101_000000-x").mkdir()
    (tmp_path / "offline-run-20260101_000001-x-r1").mkdir()
    assert [offline_id("x", tmp_path, n) for n in (0, 1, 3)] == ["x-r2", "x-r2", "x-r3"]
    assert offline_id("run-x", tmp_path, 0) == "run-x"


class OnlineRun:
    """What LoggedRun needs of a W&B run that was resumed: the server's summary."""

    resumed = True

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder / "files")
        self.summary = {"poison/loss": 0.5, "poison/step": 2, "evaluation/asr": 1.0}
        self.rows: list[dict[str, float]] = []

    def define_metric(self, *args: Any, **kwargs: Any) -> None: ...

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)


def test_a_resumed_online_run_goes_on_where_the_server_heard_last(tmp_path: Path) -> None:
    run = OnlineRun(tmp_path)
    logged = LoggedRun(run)
    logged.catch_up(
        [
            *({"time": 0, "stage": "poison", "step": step, "loss": 1.0 / step} for step in (1, 2, 3)),
            {"time": 0, "stage": "evaluation", "step": None, "asr": 1.0},
        ]
    )
    logged.log("poison", {"loss": 0.25}, 3)
    logged.log("poison", {"loss": 0.25}, 4)
    assert run.rows == [{"poison/loss": 1 / 3, "poison/step": 3}, {"poison/loss": 0.25, "poison/step": 4}]


def test_a_picture_that_cannot_be_made_costs_the_picture_only(tools: Any, tmp_path: Path) -> None:
    said: list[str] = []
    sink = WandbSink(tools.make_config(tmp_path, "wandb"), tmp_path / "aaaa", warn=said.append, restarts=0, cell=False)

    def broken() -> dict[str, Any]:
        raise ValueError("no picture")

    sink._show(LoggedRun(OnlineRun(tmp_path)), "influence", broken)
    assert said == ["tracking: W&B goes without pictures (ValueError: no picture)"]


def test_under_an_agent_there_is_the_one_run_that_it_waits_for(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep9")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    run_dir = tools.make_cell(tmp_path, "aaaa")
    tracker, _ = tools.open_quietly(tools.make_config(tmp_path, "wandb", sweep=None), run_dir)
    tools.run_stage(tracker, tmp_path, "poison", steps=[1, 2])
    tracker.finish({"asr_seen": 0.5}, failed=False, run_dir=run_dir)
    assert tracker.warnings == []
    [(id, read)] = tools.read_all(tmp_path).items()
    assert id == "chosen"
    assert read.summary["asr_seen"] == 0.5
    assert read.curve("poison/loss") == [(1, 1.0), (2, 0.5)]
