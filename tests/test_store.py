import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rapidun.errors import ArtifactError, ConfigError
from rapidun.store import Store, fingerprint, linked_artifacts, main


def build_text(text: str) -> Any:
    def build(out: Path, work: Path) -> dict[str, Any]:
        (out / "value.txt").write_text(text)
        return {"length": len(text)}

    return build


def test_second_make_reuses_and_other_inputs_do_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, found = store.make("mapping", {"tau": 0.7}, build_text("a"))
    assert not found
    assert first.result == {"length": 1}
    again, found = store.make("mapping", {"tau": 0.7}, build_text("must not run"))
    assert found
    assert (again.path / "value.txt").read_text() == "a"
    other, found = store.make("mapping", {"tau": 0.8}, build_text("bb"))
    assert not found
    assert other.fingerprint != first.fingerprint


def test_fingerprint_covers_stage_and_inputs() -> None:
    prints = {fingerprint(stage, inputs) for stage in ("mapping", "poison") for inputs in ({"a": 1}, {"a": 2}, {})}
    assert len(prints) == 6


def test_failed_build_publishes_nothing_and_keeps_its_work(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(out: Path, work: Path) -> dict[str, Any]:
        (out / "half").write_text("x")
        (work / "checkpoint").write_text("1")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.make("poison", {}, fail)
    assert store.find("poison", {}) is None
    name = fingerprint("poison", {})
    assert not (tmp_path / "poison" / f"{name}.part").exists()
    assert (tmp_path / "poison" / f"{name}.work" / "checkpoint").read_text() == "1"

    def resume(out: Path, work: Path) -> dict[str, Any]:
        (out / "whole").write_text((work / "checkpoint").read_text())
        return {}

    store.make("poison", {}, resume)
    assert not (tmp_path / "poison" / f"{name}.work").exists()


def test_damaged_artifact_is_refused_and_verify_names_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact, _ = store.make("data", {}, build_text("abc"))
    assert store.verify() == []
    (artifact.path / "value.txt").write_text("abd")
    assert len(store.verify()) == 1
    assert store.find("data", {}) is not None, "the same size passes the quick check; verify reads the bytes"
    (artifact.path / "value.txt").write_text("ab")
    with pytest.raises(ArtifactError, match=r"need .*value\.txt with 3 bytes, got 2 bytes"):
        store.find("data", {})


def test_file_hash_follows_the_content(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    file = tmp_path / "weights"
    file.write_text("a")
    first = store.file_hash(file)
    assert store.file_hash(file) == first
    time.sleep(0.01)
    file.write_text("b")
    assert store.file_hash(file) != first


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="store_dir: need a folder that can be written"):
        Store(tmp_path / "file").make("data", {}, build_text("a"))


def _slow_build(root: str, marks: str) -> None:
    def build(out: Path, work: Path) -> dict[str, Any]:
        (Path(marks) / str(os.getpid())).write_text("built")
        time.sleep(0.3)
        (out / "value.txt").write_text("a")
        return {}

    Store(Path(root)).make("poison", {}, build)


def test_processes_at_once_build_once_and_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    root = str(tmp_path / "store")
    context = multiprocessing.get_context("fork")
    doomed = context.Process(target=_slow_build, args=(root, str(marks)))
    doomed.start()
    while not any(marks.iterdir()):
        time.sleep(0.01)
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join()
    others = [context.Process(target=_slow_build, args=(root, str(marks))) for _ in range(4)]
    for process in others:
        process.start()
    for process in others:
        process.join(timeout=20)
    assert [process.exitcode for process in others] == [0, 0, 0, 0]
    assert len(list(marks.iterdir())) == 2, "one by the process that was killed, one by a single later one"
    assert Store(Path(root)).verify() == []


def test_prune_keeps_what_runs_link_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "outputs" / "store")
    kept, _ = store.make("data", {"a": 1}, build_text("a"))
    gone, _ = store.make("data", {"a": 2}, build_text("b"))
    leftover = store.root / "poison" / "0123456789abcdef.work"
    leftover.mkdir(parents=True)
    run = tmp_path / "outputs" / "runs" / "r"
    run.mkdir(parents=True)
    (run / "data").symlink_to(os.path.relpath(kept.path, run))
    assert linked_artifacts(tmp_path / "outputs") == {kept.path}
    options = ["--store", str(store.root), "--outputs", str(tmp_path / "outputs")]
    assert main(["prune", "--dry-run", *options]) == 0
    assert gone.path.exists()
    assert main(["prune", *options]) == 0
    assert kept.path.exists()
    assert not gone.path.exists()
    assert not leftover.exists()
    assert main(["verify", *options]) == 0
    assert main(["list", *options]) == 0
    assert kept.fingerprint in capsys.readouterr().out


def test_prune_keeps_what_a_run_folder_elsewhere_links_to(tmp_path: Path) -> None:
    """run_dir=DIR puts a run anywhere; the store remembers it until the folder is gone."""
    store = Store(tmp_path / "outputs" / "store")
    kept, _ = store.make("data", {"a": 1}, build_text("a"))
    run = tmp_path / "elsewhere" / "r"
    run.mkdir(parents=True)
    (run / "data").symlink_to(os.path.relpath(kept.path, run))
    store.note_run(run)
    store.note_run(run)
    assert store.run_folders() == [run]
    options = ["--store", str(store.root), "--outputs", str(tmp_path / "outputs")]
    assert main(["prune", *options]) == 0
    assert kept.path.exists()
    (run / "data").unlink()
    run.rmdir()
    assert main(["prune", *options]) == 0
    assert not kept.path.exists()
