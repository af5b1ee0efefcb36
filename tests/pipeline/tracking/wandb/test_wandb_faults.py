"""A service that dies, a folder that cannot be written, no server: the run completes with one warning each."""

import gc
import json
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from rapidun.config.tracking import WandbMode
from rapidun.pipeline.tracking.wandb import mode as wandb_mode
from rapidun.pipeline.tracking.wandb.mode import Connection, choose_connection

KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that did not answer an earlier test are asked again."""
    monkeypatch.setattr(wandb_mode, "_silent_since", {})


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def kill_service() -> None:
    """End the wandb-core that this process has started, as an out-of-memory killer would."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"wandb-core") and str(os.getpid()).encode() in words:
                os.kill(int(folder.name), signal.SIGKILL)
                time.sleep(0.2)
                return
    pytest.fail("no wandb-core of this process is running")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the process in /proc")
def test_the_service_is_killed(tools: Any, tmp_path: Path) -> None:
    """The next run of the process gets a service of its own."""
    cfg = tools.make_config(tmp_path, "wandb")
    tracker, _ = tools.open_quietly(cfg, tools.make_cell(tmp_path, "aaaa"))
    tracker.begin("poison")
    for step in (1, 2, 3, 4):
        if step == 3:
            kill_service()
        tracker.log({"loss": 1.0}, step=step)
    tracker.finish({"asr_seen": 0.5}, failed=False, run_dir=tmp_path / "aaaa")
    [warning] = tracker.warnings
    assert warning.startswith("tracking: W&B stopped (")
    with warnings.catch_warnings():
        # the dead process, which W&B has not waited for
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert steps_in(tmp_path / "aaaa" / "metrics.jsonl") == [1, 2, 3, 4]
    after, _ = tools.open_quietly(cfg, tools.make_cell(tmp_path, "bbbb"))
    after.begin("poison")
    after.log({"loss": 1.0}, step=1)
    after.finish({}, failed=False, run_dir=tmp_path / "bbbb")
    assert after.warnings == []
    [read] = tools.read_all(tmp_path / "bbbb").values()
    assert read.curve("poison/loss") == [(1, 1.0)]


def test_a_folder_that_cannot_be_written(tools: Any, tmp_path: Path) -> None:
    """A file stands where W&B would make its folder; W&B itself would go to the system's temporary folder."""
    run_dir = tools.make_cell(tmp_path, "aaaa")
    (run_dir / "wandb").write_text("in the way")
    tracker, notes = tools.open_quietly(tools.make_config(tmp_path, "wandb"), run_dir)
    tools.run_stage(tracker, tmp_path, "poison", steps=[1, 2])
    tracker.finish({}, failed=False, run_dir=run_dir)
    assert tracker.warnings == [
        f"tracking: wandb did not start (FileExistsError: [Errno 17] File exists: '{run_dir / 'wandb'}'); "
        "metrics.jsonl has every number"
    ]
    assert steps_in(run_dir / "metrics.jsonl") == [1, 2]
    assert notes == []


def test_a_disk_that_is_full_later(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell's run is there; that of the stage cannot be made any more."""
    from rapidun.pipeline.tracking.wandb import sink as wandb_sink

    run_dir = tools.make_cell(tmp_path, "aaaa")
    tracker, _ = tools.open_quietly(tools.make_config(tmp_path, "wandb"), run_dir)

    def full(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb_sink, "start_run", full)
    tools.run_stage(tracker, tmp_path, "poison", steps=[1, 2])
    tools.run_stage(tracker, tmp_path, "unlearning", steps=[1])
    tracker.finish({}, failed=False, run_dir=run_dir)
    [warning] = tracker.warnings
    assert "W&B stopped (OSError: [Errno 28] No space left on device)" in warning
    assert steps_in(run_dir / "metrics.jsonl") == [1, 2, 1]


@contextmanager
def server(status: int, *, delay: float = 0.0) -> Iterator[str]:
    """A W&B server that says the same to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay)
            self.send_response(status)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def run_online(tools: Any, tmp_path: Path) -> tuple[list[str], float, str]:
    """Warnings, seconds until it was open, and the note at the end of an online run."""
    cfg = tools.make_config(tmp_path, "wandb")
    cfg.tracking.mode = WandbMode.online
    run_dir = tools.make_cell(tmp_path, "aaaa")
    started = time.monotonic()
    tracker, notes = tools.open_quietly(cfg, run_dir)
    seconds = time.monotonic() - started
    tools.run_stage(tracker, tmp_path, "poison", steps=[1, 2, 3])
    tracker.finish({"asr_seen": 0.5}, failed=False, run_dir=run_dir)
    assert steps_in(run_dir / "metrics.jsonl") == [1, 2, 3]
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(notes) == 1, tracker.warnings
    [note] = notes
    return tracker.warnings, seconds, note


def test_a_server_that_is_not_there(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said, seconds, note = run_online(tools, tmp_path)
    assert said == ["tracking: the W&B server 127.0.0.1:9 does not answer: offline"]
    assert note.startswith("W&B: 2 offline runs")
    assert seconds < 5
    read = tools.read_all(tmp_path / "aaaa")
    assert {run.run["job_type"] for run in read.values()} == {"cell", "poison"}
    assert all(run.curve("poison/loss")[-1][0] == 3 for run in read.values())


@pytest.mark.slow
def test_a_server_that_refuses(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers, but takes nobody: the key is wrong, or it is no W&B server."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(401) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        said, seconds, note = run_online(tools, tmp_path)
    [warning] = said
    assert warning.startswith("tracking: W&B could not go online (")
    assert note.startswith("W&B: 2 offline runs")
    assert seconds < 12


@pytest.mark.slow
def test_a_server_that_never_answers(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(200, delay=30.0) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        said, seconds, _ = run_online(tools, tmp_path)
    assert len(said) == 1 and said[0].endswith("does not answer: offline")
    assert seconds < 10


def test_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mode(asked: str) -> str:
        return choose_connection(asked).mode

    address = "http://127.0.0.1:9"
    # no key: auto is offline and says nothing, online says why not
    assert choose_connection("auto") == Connection("offline", address)
    assert "has no key here" in choose_connection("online").warning
    with server(404) as answering:
        monkeypatch.setenv("WANDB_BASE_URL", answering + "/")
        assert mode("auto") == "offline"
        (tmp_path / "netrc").write_text(f"machine {answering.removeprefix('http://')} login user password {KEY}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert choose_connection("auto") == Connection("online", answering)
        assert mode("offline") == "offline"
        for asked, expected in (
            ("offline", "offline"),
            ("dryrun", "offline"),
            ("disabled", "disabled"),
            ("run", "online"),
        ):
            monkeypatch.setenv("WANDB_MODE", asked)
            assert mode("auto") == expected
        # the setting of the run is stronger than the environment
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert mode("online") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE")
    assert choose_connection("auto").warning == "tracking: the W&B server 127.0.0.1:9 does not answer: offline"
    # asked once: the address is not tried again for a while
    monkeypatch.setattr(wandb_mode, "urlopen", lambda *args, **kwargs: pytest.fail("asked again"))
    assert mode("auto") == "offline"
