"""Many processes on one empty store, some killed or suspended while they make something.

A build is a chain of hashes with a checkpoint after every link: h_0 = name, h_k = sha256(h_(k-1)). A result that lost
or mixed anything has another h_n, or not both of its files.
"""

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.files import read_json, write_json
from rapidun.base.store import Key, Store

KINDS = ("data", "poison")

NUM_LINKS = 6
NUM_PROCESSES = 16
CONTEXT = multiprocessing.get_context("fork")


def chain(name: str) -> str:
    value = name
    for _ in range(NUM_LINKS):
        value = hashlib.sha256(value.encode()).hexdigest()
    return value


def note(root: Path, *words: object) -> None:
    """One line of the log that all processes append to."""
    with (root / "log").open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def read_log(root: Path) -> list[list[str]]:
    log = root / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.is_file() else []


def take_part(root: Path, names: list[str], seed: int, *, pause: float, trap: bool) -> None:
    """Make every artifact, in an order of this process's own; with `trap`, the first to make `kill` or `stop` waits."""
    store = Store(root / "store")
    order = random.Random(seed)
    # the trapped ones first, so that they are held while the others begin
    for name in sorted(names, key=lambda name: (trap and name not in ("kill", "stop"), order.random())):

        def build(out: Path, work: Path, name: str = name) -> dict[str, Any]:
            (out / "early").write_text(name)
            checkpoint = work / "checkpoint.json"
            state = read_json(checkpoint) if checkpoint.is_file() else {"links": 0, "value": name}
            begun = state["links"]
            note(root, "start", name, os.getpid(), begun)
            while state["links"] < NUM_LINKS:
                time.sleep(pause)
                value = hashlib.sha256(state["value"].encode()).hexdigest()
                state = {"links": state["links"] + 1, "value": value}
                write_json(checkpoint, state)
                if trap and name in ("kill", "stop") and begun == 0 and state["links"] == 2:
                    note(root, "trapped", name, os.getpid())
                    while not (root / f"free-{name}").exists():
                        time.sleep(0.01)
            (out / "late").write_text(state["value"])
            return {"value": state["value"], "begun": begun}

        artifact, found = store.make(
            Key("poison", 1, {"name": name}), build, on_wait=lambda text: note(root, "waited", os.getpid(), text)
        )
        assert artifact.result["value"] == chain(name)
        note(root, "found" if found else "made", name, os.getpid())


def start(root: Path, names: list[str], seed: int, *, pause: float, trap: bool = False) -> BaseProcess:
    process = CONTEXT.Process(target=take_part, args=(root, names, seed), kwargs={"pause": pause, "trap": trap})
    process.start()
    return process


def check_store(root: Path, names: list[str]) -> None:
    """Every artifact whole, nothing beside them."""
    store = Store(root / "store")
    assert store.verify(KINDS) == []
    prints = {Key("poison", 1, {"name": name}).fingerprint: name for name in names}
    for artifact in store.artifacts(KINDS):
        name = prints[artifact.fingerprint]
        assert set(artifact.manifest["files"]) == {"early", "late"}
        assert (artifact.path / "early").read_text() == name
        assert (artifact.path / "late").read_text() == chain(name)
    assert sorted(path.name for path in (root / "store" / "poison").iterdir()) == sorted(prints)


def trapped(root: Path, name: str) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for words in read_log(root):
            if words[:2] == ["trapped", name]:
                return int(words[2])
        time.sleep(0.01)
    raise AssertionError(f"nobody began {name}")


def test_sixteen_at_once_with_one_killed_and_one_suspended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killed and the suspended holder are each replaced by one process that goes on from the second link."""
    monkeypatch.setenv("RAPIDUN_LEASE_SECONDS", "2")
    names = ["kill", "stop", *(f"plain{number}" for number in range(4))]
    processes = [start(tmp_path, names, seed, pause=0.02, trap=True) for seed in range(NUM_PROCESSES)]
    killed, stopped = trapped(tmp_path, "kill"), trapped(tmp_path, "stop")
    os.kill(killed, signal.SIGKILL)
    os.kill(stopped, signal.SIGSTOP)
    published = tmp_path / "store" / "poison" / Key("poison", 1, {"name": "stop"}).fingerprint / "manifest.json"
    deadline = time.monotonic() + 60
    while not published.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (tmp_path / "free-stop").touch()
    os.kill(stopped, signal.SIGCONT)
    for process in processes:
        process.join(timeout=60)
    codes = {process.pid: process.exitcode for process in processes}
    assert codes.pop(killed) == -signal.SIGKILL
    assert set(codes.values()) == {0}
    check_store(tmp_path, names)
    log = read_log(tmp_path)
    starts = Counter(words[1] for words in log if words[0] == "start")
    assert starts == {name: 2 if name in ("kill", "stop") else 1 for name in names}
    assert Counter(words[1] for words in log if words[0] == "made") == dict.fromkeys(names, 1)
    for name in ("kill", "stop"):
        assert [words[3] for words in log if words[:2] == ["start", name]] == ["0", "2"]
        begun = Store(tmp_path / "store").find(Key("poison", 1, {"name": name}))
        assert begun is not None
        assert begun.result["begun"] == 2
    # the suspended one got the other's result
    assert ["found", "stop", str(stopped)] in log
    told = [" ".join(words[2:]) for words in log if words[0] == "waited"]
    assert any(f"process {stopped} on" in text and "makes it since" in text for text in told)
    assert any(text.startswith("waited ") for text in told)


def send(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it was done a moment ago
        os.kill(pid, what)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_kills_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """20 seconds of signals to random processes, each killed one replaced; then all are left to finish."""
    monkeypatch.setenv("RAPIDUN_LEASE_SECONDS", "0.5")
    chance = random.Random(seed)
    names = [f"a{number}" for number in range(150)]
    running = [start(tmp_path, names, number, pause=0.05) for number in range(NUM_PROCESSES)]
    next_seed, kills = NUM_PROCESSES, 0
    stopped: list[tuple[float, int]] = []
    until = time.monotonic() + 20
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.02, 0.15))
        now = time.monotonic()
        for moment, pid in [entry for entry in stopped if entry[0] <= now]:
            send(pid, signal.SIGCONT)
            stopped.remove((moment, pid))
        # the holders are the interesting ones
        held = [int(words[2]) for words in read_log(tmp_path)[-30:] if words[0] == "start"]
        paused = {pid for _, pid in stopped}
        alive = [process for process in running if process.is_alive() and process.pid not in paused]
        preferred = [process for process in alive if process.pid in held] or alive
        if not preferred:
            break
        victim = chance.choice(preferred)
        assert victim.pid is not None
        if chance.random() < 0.5:
            victim.kill()
            victim.join()
            kills += victim.exitcode == -signal.SIGKILL
            running.append(start(tmp_path, names, next_seed, pause=0.05))
            next_seed += 1
        else:
            send(victim.pid, signal.SIGSTOP)
            stopped.append((now + chance.uniform(0.3, 2.0), victim.pid))
    for _, pid in stopped:
        send(pid, signal.SIGCONT)
    for process in running:
        process.join(timeout=120)
    assert {process.exitcode for process in running} <= {0, -signal.SIGKILL}
    assert kills >= 5
    store = Store(tmp_path / "store")
    # a holder killed behind the publication leaves its work folder or what it was removing
    left = {path for path in (store.root / "poison").iterdir() if "." in path.name and path.is_dir()}
    assert {path.suffix for path in left} <= {".work", ".gone"}
    assert set(store.prune(KINDS, {artifact.path for artifact in store.artifacts(KINDS)}, dry_run=False)) == left
    check_store(tmp_path, names)
    made = Counter(words[1] for words in read_log(tmp_path) if words[0] == "made")
    assert all(count == 1 for count in made.values())
