import json
import time
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.preemption import Pruned
from rapidun.pipeline.tracking.run import RunTracker
from rapidun.pipeline.tracking.sink import Ending, Execution, ending_of


class Listener:
    """A service that keeps what it is told; `fails_on` names the call that raises."""

    name = "Listener"

    def __init__(self, fails_on: str = "") -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.fails_on = fails_on
        self.abandoned = 0

    def _hear(self, what: str, *said: Any) -> None:
        self.heard.append((what, *said))
        if what == self.fails_on:
            raise ConnectionResetError("Connection lost")

    def start_stage(self, execution: Execution) -> None:
        self._hear("start", execution.id)

    def catch_up_stage(self, execution: Execution, lines: Any) -> None:
        self._hear("catch up", execution.id, [line["step"] for line in lines])

    def log(self, stage: str, metrics: dict[str, float], step: int | None) -> None:
        self._hear("log", stage, metrics, step)

    def finish_stage(self, execution: Execution, artifact: Path, manifest: dict[str, Any]) -> None:
        self._hear("finish stage", execution.id)

    def fail_stage(self, execution: Execution, ending: Ending) -> None:
        self._hear("fail stage", execution.id, ending.state)

    def finish(self, ending: Ending, run_dir: Path) -> str | None:
        self._hear("finish", ending.state)
        return "sync me"

    def abandon(self) -> None:
        self.abandoned += 1


def make(tmp_path: Path, **options: Any) -> tuple[RunTracker, Listener]:
    tracker = RunTracker(tmp_path / "metrics.jsonl", **options)
    listener = Listener()
    tracker.add(listener)
    return tracker, listener


def test_every_number_reaches_both_files(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = RunTracker(tmp_path / "metrics.jsonl", on_warning=said.append)
    tracker.begin("unlearning", tmp_path / "artifact.jsonl")
    tracker.log({"loss": 1.5}, step=1)
    tracker.log({"loss": float("nan")}, step=2)
    tracker.begin("evaluation")
    tracker.log({"asr_seen": 0.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("unlearning", 1),
        ("unlearning", 2),
        ("evaluation", None),
    ]
    assert lines[1]["loss"] is None
    assert len((tmp_path / "artifact.jsonl").read_text().splitlines()) == 2


def test_a_warning_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = RunTracker(tmp_path / "metrics.jsonl", on_warning=said.append)
    tracker.warn("a")
    tracker.warn("a")
    assert said == tracker.warnings == ["a"]


def test_stages_nest(tmp_path: Path) -> None:
    """A start model is made while poison waits for it; both have the stage `poison`."""
    tracker, listener = make(tmp_path, on_note=lambda note: None)
    tracker.stage_started("poison", "poison", "aa", {})
    before = tracker.begin("poison", tmp_path / "outer.jsonl")
    tracker.stage_started("poison", "model", "bb", {})
    inner = tracker.begin("poison", tmp_path / "inner.jsonl")
    tracker.begin(*inner)
    tracker.stage_finished("poison", tmp_path, {})
    tracker.log({"loss": 1.0}, step=1)
    tracker.begin(*before)
    tracker.stage_failed(RuntimeError("boom"))
    tracker.finish({}, failed=RuntimeError("boom"))
    assert listener.heard == [
        ("start", "poison-aa"),
        ("start", "poison-bb"),
        ("finish stage", "poison-bb"),
        ("log", "poison", {"loss": 1.0}, 1),
        ("fail stage", "poison-aa", "failed"),
        ("finish", "failed"),
    ]


def test_a_stage_that_nobody_ended_fails_with_the_run(tmp_path: Path) -> None:
    tracker, listener = make(tmp_path, on_note=lambda note: None)
    tracker.stage_started("influence", "influence", "aa", {})
    tracker.finish({}, failed=KeyboardInterrupt())
    assert listener.heard[-2:] == [("fail stage", "influence-aa", "failed"), ("finish", "failed")]


def test_a_killed_attempt_is_told_again_without_repeats(tmp_path: Path) -> None:
    lines = [{"time": 0, "stage": "poison", "step": step, "loss": 1.0} for step in (1, 2, 2)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"time": 0, "sta'
    (tmp_path / "work.jsonl").write_text(text)
    tracker, listener = make(tmp_path)
    tracker.stage_started("poison", "poison", "aa", {})
    tracker.begin("poison", tmp_path / "work.jsonl")
    assert listener.heard[-1] == ("catch up", "poison-aa", [1, 2])


@pytest.mark.parametrize("call", ["start", "log", "finish stage", "finish"])
def test_a_fault_of_a_service_is_one_warning(tmp_path: Path, call: str) -> None:
    said: list[str] = []
    tracker = RunTracker(tmp_path / "metrics.jsonl", on_warning=said.append, on_note=lambda note: None)
    broken, sound = Listener(fails_on=call), Listener()
    tracker.add(broken)
    tracker.add(sound)
    tracker.stage_started("poison", "poison", "aa", {})
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step=step)
    tracker.stage_finished("poison", tmp_path, {})
    tracker.finish({}, failed=False)
    assert said == [
        "tracking: Listener stopped (ConnectionResetError: Connection lost); metrics.jsonl in the run folder has every "
        "number"
    ]
    assert broken.abandoned == 1
    assert [heard[0] for heard in sound.heard] == ["start", "log", "log", "finish stage", "finish"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_observers_see_every_line_and_may_end_the_run(tmp_path: Path) -> None:
    tracker, listener = make(tmp_path)

    def prune(stage: str, metrics: dict[str, float], step: int | None) -> None:
        if step == 2:
            raise Pruned(metrics["loss"], 2)

    tracker.observers.append(prune)
    tracker.begin("unlearning")
    tracker.log({"loss": 3.0}, step=1)
    with pytest.raises(Pruned):
        tracker.log({"loss": 4.0}, step=2)
    # what ended the run is logged all the same
    assert [heard[3] for heard in listener.heard] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_endings() -> None:
    from rapidun.base.preemption import Preempted

    assert ending_of(False).state == "done"
    assert ending_of(True).state == "failed"
    assert ending_of(Preempted("time limit")).state == "preempted"
    assert ending_of(Pruned(0.5, 3)).ok
    assert ending_of(ValueError("a\nb")) == Ending(state="failed", error="ValueError: a")


def test_closing_lines_are_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker, _ = make(tmp_path)
    tracker.finish({}, failed=False)
    tracker.finish({}, failed=False)
    assert capsys.readouterr().out == "sync me\n"


def test_a_log_line_costs_little_without_services(tmp_path: Path) -> None:
    """Two files are appended to: about 0.06 ms on the development machine, 50 times less than the bound."""
    tracker = RunTracker(tmp_path / "metrics.jsonl")
    tracker.begin("unlearning", tmp_path / "artifact.jsonl")
    started = time.perf_counter()
    for step in range(200):
        tracker.log({"loss": 1.0, "grad_norm": 2.0}, step=step)
    assert (time.perf_counter() - started) / 200 < 3e-3
