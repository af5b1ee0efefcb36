"""The run folder: one process at a time, and what is left of earlier ones does not stand in the way."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.base import locks, preemption
from rapidun.base.errors import ConfigError
from rapidun.base.files import read_json, read_jsonl
from rapidun.base.locks import RUN_LEASE, take_folder
from rapidun.cli.main import main
from rapidun.config.plain import plain
from rapidun.config.run import RunConfig
from rapidun.pipeline.folder import FolderTaken, RunFolder, new_run_dir

# light, in a moment
RUN = ["debug=fast", "stages=[data]"]


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda pattern: "2026-01-01_00-00-00")
    names = [new_run_dir("a").name for _ in range(3)]
    assert names == [f"2026-01-01_00-00-00_a{end}" for end in ("", "_2", "_3")]
    assert sorted(path.name for path in Path("outputs/runs").iterdir()) == sorted(names)


def overrides(root: Path) -> list[str]:
    return [*RUN, f"store_dir={root / 'store'}", f"run_dir={root / 'run'}"]


def open_folder(path: Path, **more: Any) -> RunFolder:
    folder = RunFolder(path)
    folder.open(config={**plain(RunConfig()), "stages": ["data"]}, config_yaml="", overrides=[], **more)
    return folder


def test_a_second_process_in_one_folder_gets_one_message_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lease = take_folder_here(tmp_path / "run")
    assert main(overrides(tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"need {tmp_path / 'run'} for this process alone, but process {os.getpid()} on" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == [RUN_LEASE]
    lease.release()
    assert main(overrides(tmp_path)) == 0
    assert not (tmp_path / "run" / RUN_LEASE).exists(), "given back at the end"


def take_folder_here(path: Path, *, waits: bool = False) -> locks.Lease:
    path.mkdir(parents=True, exist_ok=True)
    return take_folder(path, waits=waits, tell=lambda line: None)


def _hold(path: str, host: str | None, beats: bool, ready: Any) -> None:
    if host:
        socket.gethostname = lambda: host
    lease = take_folder_here(Path(path))
    if not beats:
        # as on a host that is gone: nobody refreshes it
        os.kill(os.getpid(), signal.SIGKILL)
    ready.set()
    time.sleep(60)
    lease.release()


def _holder(path: Path, *, host: str | None = None, beats: bool) -> Any:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(path), host, beats, ready))
    process.start()
    process.join() if not beats else ready.wait(60)
    return process


def test_the_folder_of_a_killed_run_is_taken_over_at_once(tmp_path: Path) -> None:
    _holder(tmp_path, beats=False)
    assert (tmp_path / RUN_LEASE).exists()
    take_folder_here(tmp_path).release()


def test_that_of_a_run_killed_elsewhere_when_its_lease_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPIDUN_LEASE_SECONDS", "1.5")
    _holder(tmp_path, host="elsewhere", beats=False)
    # of its clock nothing is believed: one that goes hours ahead is as dead
    ahead = time.time() + 7200
    os.utime(tmp_path / RUN_LEASE, (ahead, ahead))
    take_folder_here(tmp_path).release()


def test_a_live_run_elsewhere_is_refused_once_it_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPIDUN_LEASE_SECONDS", "30")
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    process = _holder(tmp_path, host="elsewhere", beats=True)
    try:
        lease = locks.Lease(tmp_path / RUN_LEASE)
        assert not lease.try_acquire() and not lease.holder_is_here()
        marks = iter([(1, 1), (1, 1), (1, 2)])
        monkeypatch.setattr(locks.Lease, "mark", lambda self: next(marks))
        monkeypatch.setattr(locks.Lease, "_clear_abandoned", lambda self: False)
        with pytest.raises(ConfigError, match="works in it"):
            take_folder_here(tmp_path)
    finally:
        process.kill()
        process.join()


def test_a_process_that_was_suspended_and_taken_over_writes_no_more(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    (tmp_path / "run" / RUN_LEASE).unlink()  # as it looks when the lease has run out
    other = open_folder(tmp_path / "run")
    text = (tmp_path / "run" / "status.json").read_text()
    with pytest.raises(FolderTaken, match="another process has taken this run over"):
        folder.start_stage("data")
    folder.fail(RuntimeError("woken"))
    folder.close()
    assert (tmp_path / "run" / "status.json").read_text() == text
    assert (tmp_path / "run" / RUN_LEASE).exists(), "the other's"
    other.finish({})
    other.close()


def test_half_lines_block_neither_the_folder_nor_the_work_in_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = rapidun.run(overrides(tmp_path))
    artifact = (first.run_dir / "data").resolve()
    whole = (first.run_dir / "metrics.jsonl").read_text()
    with (first.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1.0, "stage": "da')
    # a training that was killed, its log cut by a full disk
    work = artifact.with_name(f"{artifact.name}.20260101T000000Z-00000000.work")
    work.mkdir()
    (work / "metrics.jsonl").write_text('{"time": 1.0, "stage": "data", "step": null, "x": 1.0}\n{"time": 1.0, "sta')
    for path in sorted(artifact.iterdir()):
        path.unlink()
    artifact.rmdir()
    capsys.readouterr()
    assert main(overrides(tmp_path)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("1 line that was cut or damaged is left out") == 2
    rows = read_jsonl(first.run_dir / "metrics.jsonl")
    assert {"x": 1.0}.items() <= rows[0].items(), "what was logged before the kill stays"
    assert len(rows) == len(whole.splitlines()) + 1


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '"x"', "null", '{"stages": 3}', '{"stages": {"data": []}, "restarts": "x"}']
)
@pytest.mark.parametrize("name", ["status.json", "result.json"])
def test_a_damaged_file_of_an_earlier_run_is_written_anew(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.write_text(text)
    said: list[str] = []
    folder = open_folder(path.parent, tell=said.append)
    folder.finish({"asr_seen": 0.5}, tell=said.append)
    folder.close()
    assert read_json(path.parent / "status.json")["state"] == "done"
    assert read_json(path.parent / "result.json")["asr_seen"] == 0.5
    if not text.startswith("{"):
        assert len(said) == 1 and name in said[0] and "written anew" in said[0]


def test_settings_of_another_shape_are_refused_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match=r"settings\.json with the settings of this run, got JSON of another shape"):
        open_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_folder_of_before_that_holds_a_secret_goes_on_and_tells_it_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions wrote settings as they were typed."""
    monkeypatch.setenv("SOME_API_KEY", "swordfish-1234")
    settings = {**plain(RunConfig()), "stages": ["data"]}
    settings["data"]["dir"] = "packs/swordfish-1234"
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    folder = RunFolder(tmp_path)
    folder.open(config=settings, config_yaml="", overrides=[])
    folder.close()
    assert "swordfish" not in (tmp_path / "settings.json").read_text()

    other = {**settings, "seed": settings["seed"] + 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"with others \(seed: ") as told:
        folder.open(config=other, config_yaml="", overrides=[])
    assert "swordfish" not in str(told.value)


def test_another_hidden_value_is_noticed_and_neither_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a salted digest in a file for the owner alone; the same value goes on, hidden or not."""
    monkeypatch.setenv("SOME_API_KEY", "swordfish-1234")
    monkeypatch.setenv("OTHER_API_KEY", "marlin-567890")

    def opened(directory: str) -> None:
        settings = {**plain(RunConfig()), "stages": ["data"]}
        settings["data"]["dir"] = directory
        folder = RunFolder(tmp_path / "run")
        folder.open(config=settings, config_yaml="", overrides=[])
        folder.close()

    opened("packs/swordfish-1234")
    noted = tmp_path / "run" / "hidden.json"
    assert noted.stat().st_mode & 0o777 == 0o600
    assert list(read_json(noted)["digests"]) == ["data.dir"]
    with pytest.raises(ConfigError, match=r"data\.dir: another value there, which is hidden") as told:
        opened("packs/marlin-567890")
    assert "swordfish" not in str(told.value) and "marlin" not in str(told.value)
    opened("packs/swordfish-1234")
    monkeypatch.delenv("SOME_API_KEY")
    opened("packs/swordfish-1234")  # from a shell that does not know it for a secret
    assert not noted.exists(), "nothing is hidden any more"
    monkeypatch.setenv("SOME_API_KEY", "swordfish-1234")
    opened("packs/swordfish-1234")
    for damage in ("", "[1]", '{"salt": 1, "digests": []}'):
        noted.write_text(damage)
        opened("packs/swordfish-1234")
        assert read_json(noted)["digests"]


def test_an_empty_lease_is_judged_within_seconds(tmp_path: Path) -> None:
    """Its process died between making and naming it: one that is old goes at once, a new one after a few seconds."""
    lease = tmp_path / RUN_LEASE
    lease.touch()
    then = time.time() - locks.EMPTY_SECONDS - 1
    os.utime(lease, (then, then))
    began = time.monotonic()
    take_folder_here(tmp_path).release()
    assert time.monotonic() - began < locks.EMPTY_SECONDS
    lease.touch()
    assert "has not written its name into run.lease" in locks.Lease(lease).holder()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_asked_to_end_says_interrupted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """Also where a checkpoint is saved first, and the process may be killed meanwhile; the same command goes on."""
    seen = []
    status = tmp_path / "run" / "status.json"

    def asked(self: RunFolder, stage: str) -> None:
        with preemption.checkpointing():
            os.kill(os.getpid(), number)
            seen.append(read_json(status)["state"])
        preemption.raise_if_requested()

    # nohup, under which the tests may run, has it ignored, and so has what it starts
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "start_stage", asked)
            assert main(overrides(tmp_path)) == 128 + number
    finally:
        signal.signal(number, before)
    assert seen == ["interrupted"] == [read_json(status)["state"]]
    said = capsys.readouterr()
    assert f"rapidun: stopped (signal {number.name}): {tmp_path / 'run'} keeps what is finished" in said.err
    assert "Traceback" not in said.err + said.out
    assert signal.getsignal(number) is signal.SIG_DFL and preemption.stop_requested() is None
    assert main(overrides(tmp_path)) == 0
    assert read_json(status)["state"] == "done" and read_json(status)["error"] is None


def test_a_signal_behind_the_end_changes_no_status(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    folder.finish({})
    folder.stopping("signal SIGTERM")
    assert read_json(tmp_path / "run" / "status.json")["state"] == "done"
    folder.close()
