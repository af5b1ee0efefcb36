"""`rapidun certify`: a small run of the built-in pack from the command line to its certificate, and what is refused."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import rapidun
from rapidun.base import files
from rapidun.cli.main import main

SMALL = [
    "debug=fast", "tracking=none", "mapping=uniform", "poison.retrain=true", "resources.num_threads=1",
    "evaluation=attacks_quick", "evaluation.attacks.run=[sampling,prompts]", "evaluation.privacy.run=[membership]",
    "evaluation.attacks.prompts.variants=[doubled]", "evaluation.detectors.run=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certify")
    rapidun.run([*SMALL, f"store_dir={folder / 'store'}", f"run_dir={folder / 'run'}"])
    return folder / "run"


def test_certificate_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four steps of training plant nothing: that is what it says, and every hash stands in it."""
    assert main(["certify", str(run)]) == 0
    out = capsys.readouterr().out
    made = json.loads((run / "certificate.json").read_text(encoding="utf-8"))
    assert made["verdict"]["outcome"] == "not_shown" and made["verdict"]["sentence"] in out
    assert "unseen_before" in [reason["code"] for reason in made["verdict"]["reasons"]]
    assert {"sampling", "prompts", "asked"} <= {one["attack"] for one in made["tried"]}
    assert all(one["unlearned"]["num"] <= 6 and one["retrain"] for one in made["tried"] if one["attack"] == "sampling")
    links = {one["link"]: one for one in made["artifacts"]}
    assert "adapter/adapter_model.safetensors" in links["unlearning"]["files"]
    assert made["verified"]["artifacts"] >= len(links) and made["files"]["result.json"]["sha256"]
    # the same run gives the same bytes, also beside its own certificate and from a relative path
    before = {name: (run / name).read_bytes() for name in ("certificate.json", "certificate.html")}
    assert main(["certify", str(run), "--out", str(tmp_path / "again")]) == 0
    assert {name: (tmp_path / "again" / name).read_bytes() for name in before} == before


def test_a_changed_number_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "evaluation" / "attacks.json"
    good = file.read_text(encoding="utf-8")
    try:
        file.write_text(good.replace('"num_prompts": 6', '"num_prompts": 600', 1), encoding="utf-8")
        assert main(["certify", str(run), "--out", str(tmp_path)]) == 1
    finally:
        file.write_text(good, encoding="utf-8")
    error = capsys.readouterr().err
    assert "attacks.json" in error and "no certificate is written" in error
    assert not list(tmp_path.iterdir())


def test_a_damaged_artifact_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = (run / "unlearning" / "adapter" / "adapter_model.safetensors").resolve()
    good = file.read_bytes()
    try:
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        (tmp_path / "certificate.html").write_text("earlier")
        assert main(["certify", str(run), "--out", str(tmp_path)]) == 1
    finally:
        file.write_bytes(good)
    error = capsys.readouterr().err
    assert "adapter_model.safetensors" in error and "certificate.html in" in error and "do not hand them on" in error
    assert (tmp_path / "certificate.html").read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("state", ["failed", "running", "interrupted"])
def test_a_run_that_is_not_done_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("status.json", "result.json", "settings.json"):
        shutil.copy(run / name, copy)
    status = json.loads((copy / "status.json").read_text(encoding="utf-8"))
    (copy / "status.json").write_text(json.dumps(status | {"state": state}), encoding="utf-8")
    assert main(["certify", str(copy)]) == 1
    assert f"got one that is {state}" in capsys.readouterr().err
    assert not (copy / "certificate.html").exists()


def test_a_sweep_is_told_to_name_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a1", "b2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text('{"state": "done"}')
    assert main(["certify", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "got a sweep folder" in error and str(tmp_path / "a1") in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["", "absent"])
def test_other_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["certify", str(tmp_path / name)]) == 2
    assert "need the folder of a run" in capsys.readouterr().err


def test_a_full_disk_is_said_as_everywhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = files.sync

    def full(path: Path) -> None:
        if path.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    monkeypatch.setattr(files, "sync", full)
    assert main(["certify", str(run), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rapidun: disk: need room for ") and "certificate.json" in said and said.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())
