import json
from pathlib import Path

from rapidun.tracking import RunTracker, without_repeats


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


def test_without_repeats_keeps_the_last_of_a_step() -> None:
    lines = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "val": 9.0},
        {"step": None, "steps": 3},
        {"step": 2, "loss": 2.5},
        {"step": 3, "loss": 3.0},
    ]
    assert without_repeats(lines) == [lines[0], lines[2], lines[3], lines[4], lines[5]]
