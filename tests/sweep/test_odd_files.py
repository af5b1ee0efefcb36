"""Valid JSON of a wrong shape, and damaged JSON, in one file of a sweep: said for that one, and the others go on."""

import json
import shutil
from pathlib import Path

import pytest

from rapidun.base.files import read_json, write_json
from rapidun.cli.main import main
from rapidun.sweep.folder import SweepFolder, SweepLock

NAME = "odd"
SWEEP = [
    "-m", "debug=fast", "stages=[data]", "data.builtin.num_forget=4,5,6", f"sweep.name={NAME}", "store_dir=store",
    "resources.num_threads=1",
]  # fmt: skip
SHAPES = ["[]", "3", '"x"', "null", "{", "", '{"state": []}', '{"state": "running", "stages": []}']
ODD_STATUS = [
    '{"state": "done", "stages": {"data": 3}}', '{"state": "done", "stages": {"data": {"seconds": "x"}}}',
    '{"state": "failed", "error": "text"}', '{"state": "running", "restarts": {}, "stage": 3}',
]  # fmt: skip
ODD_ALIVE = ['{"done": "x", "total": {}}', '{"done": 3, "total": 0}', '{"total": true}', '{"done": 1e999, "total": 1}']
ODD_JOBS = ['{"a": 3}', '{"a": {"launcher": 3}}', '{"a": {"launcher": "x", "handle": null, "folders": [1]}}',
            '{"a": {"launcher": "nobody", "handle": "h", "folders": [], "needs": [], "over": false}}']  # fmt: skip


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(SWEEP) == 0
    return root


@pytest.fixture
def sweep(launched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(launched, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Path("outputs/sweeps") / NAME


def one_cell(sweep: Path) -> Path:
    return sweep / read_json(sweep / "sweep.json")["cells"][1]["hash"]


def said_by(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(list(argv))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return status, shown.out + shown.err


@pytest.mark.parametrize("text", [*SHAPES, *ODD_STATUS])
def test_a_status_of_another_shape_fails_its_cell_alone(
    sweep: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (one_cell(sweep) / "status.json").write_text(text)
    status, said = said_by(capsys, "sweep", "status", str(sweep))
    assert "3 of 3 cells: 2 done, 1 failed" in said and one_cell(sweep).name in said and status == 1
    status, said = said_by(capsys, "report", str(sweep))
    assert status == 0 and "3 cells: 2 done" in said


@pytest.mark.parametrize("text", [*SHAPES, *ODD_ALIVE])
def test_a_sign_of_life_of_another_shape_is_none(sweep: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = read_json(one_cell(sweep) / "status.json")
    write_json(one_cell(sweep) / "status.json", {**status, "state": "running", "stage": "data"})
    (one_cell(sweep) / "alive.json").write_text(text)
    with SweepLock(SweepFolder(sweep)):
        _, said = said_by(capsys, "sweep", "status", str(sweep))
    assert "2 done, 1 running (data)" in said and "data 0%" in said


@pytest.mark.parametrize("text", [*SHAPES[:5], *ODD_JOBS])
def test_jobs_of_another_shape_are_said_and_left_out(
    sweep: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "jobs.json").write_text(text)
    status, said = said_by(capsys, "sweep", "status", str(sweep))
    assert status == 0 and "3 of 3 cells: 3 done" in said
    assert "jobs.json" in said


def test_a_cell_of_another_shape_in_the_plan(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = read_json(sweep / "sweep.json")
    for odd in (3, [], {"hash": 3}, {"hash": "x", "axes": []}):
        write_json(sweep / "sweep.json", {**plan, "cells": [*plan["cells"], odd]})
        status, said = said_by(capsys, "sweep", "status", str(sweep))
        assert status == 0 and "3 of 3 cells: 3 done" in said and "1 cells are left out" in said
    for gone in ("configs", "cluster", "launcher"):
        write_json(sweep / "sweep.json", {key: value for key, value in plan.items() if key != gone})
        status, said = said_by(capsys, "sweep", "retry", str(sweep))
        assert status == 2 and "need what a launch writes" in said


@pytest.mark.parametrize("text", [None, "{", "[]", '{"launch": 1}'])
def test_without_the_file_of_secrets_a_sweep_is_looked_at_and_not_run(
    sweep: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep folder that was copied without private.json, or is another user's: `(hidden)` is nobody's setting."""
    plan = read_json(sweep / "sweep.json")
    plan["configs"]["first"]["cluster"]["environment"] = {"SITE_TOKEN": "(hidden)"}
    write_json(sweep / "sweep.json", plan)
    if text is not None:
        (sweep / "private.json").write_text(text)
    assert said_by(capsys, "sweep", "retry", str(sweep))[0] == 0, "nothing is left to run"
    status = read_json(one_cell(sweep) / "status.json")
    write_json(one_cell(sweep) / "status.json", {**status, "state": "failed", "error": {"message": "x"}})
    code, said = said_by(capsys, "sweep", "status", str(sweep))
    assert code == 1 and "3 of 3 cells: 2 done, 1 failed" in said
    assert ("private.json" in said) == (text in ("{", "[]"))
    before = (sweep / "sweep.json").read_bytes()
    for action in ("retry", "resume"):
        code, said = said_by(capsys, "sweep", action, str(sweep))
        assert code == 2 and "cluster.environment.SITE_TOKEN" in said and "private.json" in said
    assert (sweep / "sweep.json").read_bytes() == before
    code, said = said_by(capsys, *SWEEP, "sweep.retry_failed=true")
    assert code == 0 and "3 cells: 3 done" in said


@pytest.mark.parametrize("text", [*SHAPES[:6], '{"files": [], "result": {}}', '{"files": {"a": 3}, "result": {}}'])
def test_a_manifest_of_another_shape_spares_the_store(
    sweep: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = (one_cell(sweep) / "data").resolve()
    (folder / "manifest.json").write_text(text)
    status, said = said_by(capsys, "store", "list", "--store", "store")
    assert status == 0 and said.count(" MiB ") == 2 and "damaged: " in said
    status, said = said_by(capsys, "store", "verify", "--store", "store")
    assert status == 1 and "1 damaged files" in said and str(folder.name) in said
    assert said_by(capsys, "store", "prune", "--store", "store", "--dry-run") == (0, "0 folders\n")


def test_retry_runs_the_damaged_cell_again_and_verify_says_so_before_and_after(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The damaged artifact, too: it is moved away, made anew and has the bytes that it had."""
    status, said = said_by(capsys, "verify", str(sweep))
    assert status == 0 and "this table follows from these bytes: 3 runs, 3 artifacts" in said
    (one_cell(sweep) / "status.json").write_text("[]")
    keywords = (one_cell(sweep) / "data").resolve() / "forget.jsonl"
    keywords.write_bytes(keywords.read_bytes().replace(b"a", b"b", 1))
    status, said = said_by(capsys, "verify", str(sweep))
    assert status == 1 and "summary.json: need what follows from the cells' results" in said
    status, said = said_by(capsys, "sweep", "retry", str(sweep))
    assert status == 0 and "forget.jsonl: need sha256" in said and "made anew" in said
    status, said = said_by(capsys, "verify", str(sweep))
    assert status == 0, said


def test_tables_that_the_cells_do_not_give(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("summary.csv", "summary.md", "summary.json"):
        text = (sweep / name).read_text()
        changed = text.replace("1", "2", 1)
        assert changed != text
        (sweep / name).write_text(changed)
        status, said = said_by(capsys, "verify", str(sweep), "--json")
        assert status == 1 and [name in fault for fault in json.loads(said)["faults"]] == [True]
        (sweep / name).write_text(text)


def test_a_table_that_is_no_text_or_no_json_does_not_follow(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [("summary.csv", b"\xff"), ("summary.md", b"\xff"), ("summary.json", b"{"), ("summary.json", b"3")]
    for name, content in odd:
        whole = (sweep / name).read_bytes()
        (sweep / name).write_bytes(content)
        status, said = said_by(capsys, "verify", str(sweep))
        assert status == 1 and f"{sweep / name}: " in said and "1 fault" in said
        (sweep / name).write_bytes(whole)
    assert said_by(capsys, "verify", str(sweep))[0] == 0
