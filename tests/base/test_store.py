import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ConfigError
from rapidun.base.files import sha256_file
from rapidun.base.locks import Lease
from rapidun.base.manifest import DamagedArtifact
from rapidun.base.store import Key, Store, linked_artifacts
from rapidun.cli.store import main

KINDS = ("model", "data", "poison", "mapping")


def build_text(text: str) -> Any:
    def build(out: Path, work: Path) -> dict[str, Any]:
        (out / "value.txt").write_text(text)
        return {"length": len(text)}

    return build


def make_old(file: Path, *, seconds: float = 100.0) -> None:
    """As it is some time after it was written."""
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_second_make_reuses_and_other_inputs_do_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, found = store.make(Key("mapping", 1, {"tau": 0.7}), build_text("a"))
    assert not found
    assert first.result == {"length": 1}
    again, found = store.make(Key("mapping", 1, {"tau": 0.7}), build_text("must not run"))
    assert found
    assert (again.path / "value.txt").read_text() == "a"
    other, found = store.make(Key("mapping", 1, {"tau": 0.8}), build_text("bb"))
    assert not found
    assert other.fingerprint != first.fingerprint


def test_fingerprint_covers_kind_version_and_inputs() -> None:
    prints = {
        Key(stage, 1, inputs).fingerprint for stage in ("mapping", "poison") for inputs in ({"a": 1}, {"a": 2}, {})
    }
    assert len(prints) == 6


def test_failed_build_publishes_nothing_and_keeps_its_work(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(out: Path, work: Path) -> dict[str, Any]:
        (out / "half").write_text("x")
        (work / "checkpoint").write_text("1")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.make(Key("poison", 1, {}), fail)
    assert store.find(Key("poison", 1, {})) is None
    assert not list(tmp_path.rglob("*.part"))
    (work,) = (tmp_path / "poison").glob(Key("poison", 1, {}).fingerprint + ".*.work")
    assert (work / "checkpoint").read_text() == "1"

    def resume(out: Path, work: Path) -> dict[str, Any]:
        (out / "whole").write_text((work / "checkpoint").read_text())
        return {}

    store.make(Key("poison", 1, {}), resume)
    assert [path.name for path in (tmp_path / "poison").iterdir()] == [Key("poison", 1, {}).fingerprint]


def test_the_newest_work_folder_is_adopted_and_the_others_go(tmp_path: Path) -> None:
    """Tokens sort by time; a folder without one was left by an earlier version."""
    name = Key("poison", 1, {}).fingerprint
    for token, text in (("20260102T000000Z-00000000.", "new"), ("20260101T000000Z-ffffffff.", "old"), ("", "oldest")):
        folder = tmp_path / "poison" / f"{name}.{token}work"
        folder.mkdir(parents=True)
        (folder / "checkpoint").write_text(text)

    def resume(out: Path, work: Path) -> dict[str, Any]:
        assert len(list(work.parent.glob("*work"))) == 1
        return {"from": (work / "checkpoint").read_text()}

    artifact, _ = Store(tmp_path).make(Key("poison", 1, {}), resume)
    assert artifact.result == {"from": "new"}


def test_a_holder_that_was_taken_over_returns_the_other_result(tmp_path: Path) -> None:
    """What happens to a suspended holder, step by step: its lease expires, another makes the artifact, it wakes up."""
    store = Store(tmp_path)
    folder = tmp_path / "poison"
    built = []

    def build(out: Path, work: Path) -> dict[str, Any]:
        built.append(out)
        if len(built) == 1:
            next(folder.glob("*.lease")).unlink()  # as it looks to others when the lease has run out
            artifact, found = Store(tmp_path).make(Key("poison", 1, {}), build)
            assert not found
            assert artifact.result == {"number": 2}
            # our code makes its folders anew and goes on
            out.mkdir()
            (out / "rest").write_text("only the end")
        else:
            (out / "whole").write_text("all")
        return {"number": len(built)}

    artifact, found = store.make(Key("poison", 1, {}), build)
    assert found
    assert artifact.result == {"number": 2}
    assert [path.name for path in artifact.path.iterdir() if path.name != "manifest.json"] == ["whole"]
    assert [path.name for path in folder.iterdir()] == [artifact.fingerprint]


def test_of_two_whole_results_the_second_is_thrown_away(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def build(out: Path, work: Path) -> dict[str, Any]:
        other = tmp_path / "poison" / Key("poison", 1, {}).fingerprint
        other.mkdir()
        manifest = {"stage": "poison", "files": {}, "result": {"by": "other"}}
        (other / "manifest.json").write_text(json.dumps(manifest))
        (out / "value").write_text("ours")
        return {"by": "us"}

    artifact, found = store.make(Key("poison", 1, {}), build)
    assert found
    assert artifact.result == {"by": "other"}
    assert [path.name for path in (tmp_path / "poison").iterdir()] == [artifact.fingerprint]


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    debris = tmp_path / "data" / Key("data", 1, {}).fingerprint
    debris.mkdir(parents=True)
    (debris / "rest").write_text("x")
    artifact, found = Store(tmp_path).make(Key("data", 1, {}), build_text("a"))
    assert not found
    assert sorted(path.name for path in artifact.path.iterdir()) == ["manifest.json", "value.txt"]


def test_a_damaged_artifact_is_named_moved_away_and_made_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact, _ = store.make(Key("data", 1, {}), build_text("abc"))
    assert store.verify(KINDS) == []
    (artifact.path / "value.txt").write_text("abd")
    assert len(store.verify(KINDS)) == 1
    key = Key("data", 1, {})
    assert store.find(key) is not None, "the same size passes the quick look"
    with pytest.raises(DamagedArtifact, match=r"value\.txt: need sha256 ba7816bf8f01\.\.\., got .*its bytes changed"):
        store.whole(key)
    (artifact.path / "value.txt").write_text("ab")
    with pytest.raises(DamagedArtifact, match=r"value\.txt: need 3 bytes, got 2 bytes"):
        store.whole(key)
    assert store.find(key) is None
    said: list[str] = []
    store.set_aside_damaged(key, tell=said.append)
    again, found = store.make(key, build_text("abc"))
    assert not found and store.whole(key) is not None
    (aside,) = (tmp_path / "data").glob("*.damaged")
    assert (aside / "value.txt").read_text() == "ab", "nothing is deleted but by prune"
    assert len(said) == 1 and "value.txt: need 3 bytes, got 2 bytes" in said[0] and aside.name in said[0]
    assert again.path == artifact.path
    assert store.prune(KINDS, {again.path.resolve()}, dry_run=False) == [aside]


def test_what_shows_damage_is_moved_away_by_make_itself(tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    artifact, _ = store.make(Key("data", 1, {}), build_text("abc"))
    (artifact.path / "value.txt").unlink()
    again, found = store.make(Key("data", 1, {}), build_text("abc"), on_wait=said.append)
    assert not found and (again.path / "value.txt").read_text() == "abc"
    assert len(said) == 1 and "value.txt: need 3 bytes, got none" in said[0]


def test_files_that_were_read_are_not_read_again_until_they_are_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, key = Store(tmp_path), Key("data", 1, {})
    artifact, _ = store.make(key, build_text("abc"))
    read: list[Path] = []
    monkeypatch.setattr("rapidun.base.hashes.sha256_file", lambda path: (read.append(path), sha256_file(path))[1])
    store.whole(key)
    assert [path.name for path in read] == ["value.txt"], "too young: a second write might not show in its time"
    make_old(artifact.path / "value.txt")
    for _ in range(3):
        store.whole(key)
    assert len(read) == 2
    # the same bytes at another time or place are read; other bytes at the same time and size are another inode
    make_old(artifact.path / "value.txt", seconds=200)
    assert store.whole(key) is not None
    assert len(read) == 3
    stat = (artifact.path / "value.txt").stat()
    (artifact.path / "other").write_text("abd")
    os.utime(artifact.path / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(artifact.path / "other", artifact.path / "value.txt")
    with pytest.raises(DamagedArtifact, match=r"value\.txt"):
        store.whole(key)


@pytest.mark.parametrize("note", ["", "[]", '{"files": 3}', '{"files": {"value.txt": [1]}, "check": "x"}'])
def test_a_damaged_note_costs_a_read_and_nothing_else(tmp_path: Path, note: str) -> None:
    store, key = Store(tmp_path), Key("data", 1, {})
    artifact, _ = store.make(key, build_text("abc"))
    make_old(artifact.path / "value.txt")
    store.whole(key)
    (place,) = (tmp_path / "hashes").iterdir()
    place.write_text(note)
    assert store.whole(key) is not None
    (artifact.path / "value.txt").write_text("abd")
    with pytest.raises(DamagedArtifact):
        store.whole(key)


def test_a_manifest_of_an_earlier_version_is_taken(tmp_path: Path) -> None:
    """Without a checksum, without what it was made from, and the oldest without hashes."""
    store, key = Store(tmp_path), Key("data", 1, {})
    artifact, _ = store.make(key, build_text("abc"))
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    for gone in ("check", "reads"):
        del manifest[gone]
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    assert store.whole(key) is not None
    del manifest["files"]["value.txt"]["sha256"]
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    assert store.whole(key) is not None
    assert store.verify(KINDS) == []


@pytest.mark.parametrize(
    "change",
    [{"result": {"length": 4}}, {"inputs": {"a": 1}}, {"files": {}}, {"result": []}, {"fingerprint": "0" * 16}],
)
def test_a_changed_manifest_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    store, key = Store(tmp_path), Key("data", 1, {})
    artifact, _ = store.make(key, build_text("abc"))
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    (artifact.path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(DamagedArtifact, match=r"manifest\.json"):
        store.whole(key)
    assert len(store.verify(KINDS)) == 1
    again, found = store.make(key, build_text("abc"))
    assert not found and again.result == {"length": 3}


def test_file_hash_follows_the_content(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    file = tmp_path / "weights"
    file.write_text("a")
    first = store.file_hash(file)
    assert store.file_hash(file) == first
    assert not (tmp_path / "store").exists(), "too young to be remembered"
    make_old(file)
    assert store.file_hash(file) == first
    file.write_text("b")
    make_old(file, seconds=50)
    assert store.file_hash(file) != first
    assert len(list((tmp_path / "store" / "hashes").iterdir())) == 2


def _note(root: str, number: int) -> None:
    store = Store(Path(root) / "store")
    for index in range(20):
        run = Path(root) / "runs" / f"{number}-{index}"
        run.mkdir(parents=True)
        (run / "file").write_text(str(index))
        make_old(run / "file")
        store.note_run(run)
        store.file_hash(run / "file")
        store.file_hash(Path(root) / "shared")


def test_notes_of_many_processes_are_all_kept(tmp_path: Path) -> None:
    """8 processes note 20 runs and hash 20 files each, and all hash a file that they share: 160 notes, 161 hashes."""
    (tmp_path / "shared").write_text("x")
    make_old(tmp_path / "shared")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_note, args=(str(tmp_path), number)) for number in range(8)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(timeout=60)
    assert [process.exitcode for process in writers] == [0] * 8
    store = Store(tmp_path / "store")
    assert len(store.run_folders()) == 160
    assert len(list((tmp_path / "store" / "hashes").iterdir())) == 161


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="store_dir: need a folder that can be written"):
        Store(tmp_path / "file").make(Key("data", 1, {}), build_text("a"))


def _slow_build(root: str, marks: str) -> None:
    def build(out: Path, work: Path) -> dict[str, Any]:
        (Path(marks) / str(os.getpid())).write_text("built")
        time.sleep(0.3)
        (out / "value.txt").write_text("a")
        return {}

    Store(Path(root)).make(Key("poison", 1, {}), build)


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
    assert Store(Path(root)).verify(KINDS) == []


def test_prune_keeps_what_runs_link_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "outputs" / "store")
    kept, _ = store.make(Key("data", 1, {"a": 1}), build_text("a"))
    gone, _ = store.make(Key("data", 1, {"a": 2}), build_text("b"))
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


def test_prune_leaves_what_a_live_process_makes_and_clears_leftovers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    name = Key("poison", 1, {}).fingerprint
    leftovers = [
        store.root / "data" / f"0123456789abcdef.20260101T000000Z-00000000.{kind}" for kind in ("part", "work", "gone")
    ]

    def build(out: Path, work: Path) -> dict[str, Any]:
        (work / "checkpoint").write_text("1")
        for path in leftovers:
            path.mkdir(parents=True)
        assert store.prune(KINDS, set(), dry_run=True) == sorted(leftovers)
        assert all(path.is_dir() for path in leftovers)
        assert store.prune(KINDS, set(), dry_run=False) == sorted(leftovers)
        assert not any(path.exists() for path in leftovers)
        assert (work / "checkpoint").is_file()
        return {}

    _, found = store.make(Key("poison", 1, {}), build)
    assert not found
    (store.root / "poison" / f"{name}.lock").write_text("")  # of an earlier version
    assert store.prune(KINDS, set(), dry_run=False) == [store.root / "poison" / name]
    assert not any((store.root / "poison").iterdir())
    assert not any((store.root / "data").iterdir())


def test_folders_of_a_sweep_are_linked(tmp_path: Path) -> None:
    targets = []
    for index, folder in enumerate(("runs/r", "sweeps/s/cell", "sweeps/s/stages/poison-1", "sweeps/s/cell/evaluation")):
        target = tmp_path / "store" / str(index)
        target.mkdir(parents=True)
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "link").symlink_to(os.path.relpath(target, tmp_path / folder))
        targets.append(target)
    assert linked_artifacts(tmp_path) == set(targets)


def test_prune_keeps_what_a_run_folder_elsewhere_links_to(tmp_path: Path) -> None:
    """run_dir=DIR puts a run anywhere; the store remembers it until the folder is gone."""
    store = Store(tmp_path / "outputs" / "store")
    kept, _ = store.make(Key("data", 1, {"a": 1}), build_text("a"))
    run = tmp_path / "elsewhere" / "r"
    run.mkdir(parents=True)
    (run / "data").symlink_to(os.path.relpath(kept.path, run))
    store.note_run(run)
    store.note_run(run)
    assert store.run_folders() == [run]
    odd = tmp_path / "else\u2028where\x85" / "r"
    odd.mkdir(parents=True)
    store.note_run(odd)
    assert set(store.run_folders()) == {run, odd}
    odd.rmdir()
    options = ["--store", str(store.root), "--outputs", str(tmp_path / "outputs")]
    assert main(["prune", *options]) == 0
    assert kept.path.exists()
    (run / "data").unlink()
    run.rmdir()
    assert main(["prune", *options]) == 0
    assert not kept.path.exists()


@pytest.mark.parametrize("looks", ["find", "whole", "make"])
def test_what_a_kill_behind_the_publication_leaves_goes_when_the_artifact_is_used(tmp_path: Path, looks: str) -> None:
    """A live holder's stays: it tidies up itself."""
    store, key = Store(tmp_path), Key("data", 1, {"a": 1})
    artifact, _ = store.make(key, build_text("x"))
    left = artifact.path.with_name(f"{key.fingerprint}.20260101T000000Z-01234567.work")

    def look() -> None:
        store.make(key, build_text("x")) if looks == "make" else getattr(store, looks)(key)

    def hold() -> None:
        held = Lease(artifact.path.with_name(f"{key.fingerprint}.lease"))
        assert held.try_acquire()
        left.mkdir()
        (left / "half").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)

    lease = Lease(artifact.path.with_name(f"{key.fingerprint}.lease"))
    with lease:
        assert lease.try_acquire()
        left.mkdir()
        look()
        assert left.is_dir()
    left.rmdir()
    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    process.join()
    assert left.is_dir() and lease.path.is_file()
    look()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [key.fingerprint]


def test_a_signal_behind_the_publication_leaves_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is kept for whoever goes on; of a published artifact nobody does."""
    store, key = Store(tmp_path), Key("data", 1, {"a": 1})

    def build(out: Path, work: Path) -> dict[str, Any]:
        (work / "checkpoint").write_text("half")
        (out / "x").write_text("x")
        return {}

    def stopped(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rapidun.base.claims.sync", stopped)  # behind the rename
    with pytest.raises(KeyboardInterrupt):
        store.make(key, build)
    assert store.whole(key) is not None
    assert [path.name for path in (tmp_path / "data").iterdir()] == [key.fingerprint]
