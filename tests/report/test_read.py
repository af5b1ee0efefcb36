"""The readers: absent files are empty, damaged ones are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rapidun.base.errors import ArtifactError
from rapidun.report.read import error_line, is_run, read_influence, read_instructions, read_run, series, stage_costs


def test_an_empty_folder_reads_as_empty(tmp_path: Path) -> None:
    run = read_run(tmp_path)
    assert not is_run(tmp_path)
    assert run.before == run.after == {}
    assert run.generations == run.logged == run.forget_weights == run.costs == []
    assert read_influence(tmp_path) is None
    assert run.error == ""
    assert run.setting("mapping.tau_f") is None


def test_a_finished_run(finished_run: Path) -> None:
    run = read_run(finished_run)
    assert is_run(finished_run)
    assert run.name == "builtin"
    assert run.before["asr_seen"] == 0.97
    assert len(run.forget_weights) == 40
    assert [cost.stage for cost in run.costs][:2] == ["data", "poison"]
    assert run.costs[0].cached and not run.costs[2].cached
    influence = read_influence(finished_run)
    assert influence is not None
    assert influence.blocks["fr"].shape == (40, 120)
    assert set(read_instructions(finished_run, ["f000", "r001", "absent"])) == {"f000", "r001"}


def test_the_last_line_of_the_log_may_be_cut(tmp_path: Path) -> None:
    whole = '{"stage": "poison", "step": 1, "loss": 2.0}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + '{"stage": "poison", "st')
    assert len(read_run(tmp_path).logged) == 1


def test_history_stands_in_where_unlearning_logged_nothing(tmp_path: Path) -> None:
    (tmp_path / "unlearning").mkdir()
    (tmp_path / "unlearning" / "history.json").write_text('[{"step": 1, "loss": 0.5}]')
    assert series(read_run(tmp_path).logged, "unlearning") == {"loss": [(1.0, 0.5)]}


def test_series_sorts_and_keeps_the_last_value_of_a_repeated_step() -> None:
    rows = [
        {"time": 1, "stage": "unlearning", "step": 2, "loss": 9.0},
        {"time": 2, "stage": "unlearning", "step": 1, "loss": 3.0, "unlearning/grad_norm": 1.0, "note": "x"},
        {"time": 3, "stage": "unlearning", "step": 2, "loss": 2.0, "gone": None},
        {"time": 4, "stage": "poison", "step": 1, "loss": 7.0},
        {"time": 5, "stage": "unlearning", "step": None, "loss": 8.0},
    ]
    assert series(rows, "unlearning") == {"loss": [(1.0, 3.0), (2.0, 2.0)], "grad_norm": [(1.0, 1.0)]}


@pytest.mark.parametrize("name", ["status.json", "evaluation/after.json", "mapping/diagnostics.json"])
def test_a_damaged_file_is_named(run_dir: Path, name: str) -> None:
    (run_dir / name).write_text('{"state": ')
    with pytest.raises(ArtifactError, match=name.split("/")[-1]):
        read_run(run_dir)


def test_scores_that_do_not_fit_their_ids_are_refused(run_dir: Path) -> None:
    scores = run_dir / "influence" / "scores.safetensors"
    blocks = load_file(scores)
    save_file({**blocks, "fr": np.zeros((40, 119), dtype=np.float32)}, scores)
    with pytest.raises(ArtifactError, match=r"need fr of shape \(40, 120\)"):
        read_influence(run_dir)
    ids = json.loads((run_dir / "influence" / "ids.json").read_text())
    ids["queries"] = {"forget": ids["forget"], "retain": ids["retain"][1:]}
    (run_dir / "influence" / "ids.json").unlink()
    (run_dir / "influence" / "ids.json").write_text(json.dumps(ids))
    with pytest.raises(ArtifactError, match=r"need rr of shape \(120, 119\)"):
        read_influence(run_dir)
    save_file({**blocks, **{name: np.zeros_like(blocks[name][:, 1:]) for name in ("fr", "rr")}}, scores)
    found = read_influence(run_dir)
    assert found is not None and found.query_ids == (ids["forget"], ids["retain"][1:])
    scores.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="need the tensors ff, fr, rf, rr"):
        read_influence(run_dir)


def test_non_finite_metrics_and_flags_are_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "after.json").write_text('{"a": 1, "b": NaN, "c": null, "d": true, "e": "x"}')
    assert read_run(tmp_path).after == {"a": 1.0}


def test_costs_from_the_result_where_the_status_has_none() -> None:
    (cost,) = stage_costs({}, {"seconds.poison": 3, "peak_memory_gb.poison": 0.5, "asr_seen": 1.0})
    assert (cost.stage, cost.seconds, cost.peak_memory_gb, cost.cached) == ("poison", 3.0, 0.5, False)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (None, ""),
        ("disk full\nmore", "disk full"),
        ({"message": "DataError: no rows", "traceback": "..."}, "DataError: no rows"),
        (
            'Traceback (most recent call last):\n  File "x.py", line 1\n    f()\nValueError: nan\nmore',
            "ValueError: nan",
        ),
    ],
)
def test_error_line(error: object, line: str) -> None:
    assert error_line(error) == line
    assert error_line(json.loads(json.dumps(error))) == line
