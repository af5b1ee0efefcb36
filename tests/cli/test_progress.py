"""The line that says how far a long piece of work is: its estimate by hand, on a terminal and in a log."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rapidun.cli import progress
from rapidun.cli.main import main
from rapidun.cli.progress import Progress
from rapidun.stages.rows.records import write_records


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    return lambda flag: monkeypatch.setattr("sys.stderr.isatty", lambda: flag, raising=False)


def test_time_left_is_the_rest_at_the_mean_pace_since_the_start(capsys, on_terminal) -> None:
    """4 of 10 were there; 40 s are lost on loading; then 2 more take 30 s, so that the other 4 take 60 s."""
    on_terminal(True)
    clock = Clock()
    line = Progress("index", "shards", clock=clock)
    clock.now += 40
    line.start(4)
    assert line.seconds_left(4, 10) is None
    clock.now += 30
    assert line.seconds_left(6, 10) == 60
    line(6, 10)
    line.end()
    assert "index: 6 of 10 shards, about 60 s left" in capsys.readouterr().err


def test_nothing_is_estimated_before_anything_is_done_and_after_all_is(capsys, on_terminal) -> None:
    on_terminal(True)
    clock = Clock()
    line = Progress("index", "shards", clock=clock)
    line.start()
    clock.now += 5
    line(0, 2)
    clock.now += 5
    line(2, 2)
    said = capsys.readouterr().err
    assert "0 of 2" in said and "2 of 2" in said and "left" not in said


def test_a_log_gets_its_first_line_soon_then_one_a_minute_and_the_same_line_once(capsys, on_terminal) -> None:
    on_terminal(False)
    clock = Clock()
    line = Progress("index", "shards", clock=clock)
    line.start()
    for done in range(1, 7):
        clock.now += progress.LOG_SECONDS / 3
        line(done, 12)
        line(done, 12)
    line.end()
    said = capsys.readouterr().err.splitlines()
    assert said == ["index: 1 of 12 shards, about 3 min 40 s left", "index: 4 of 12 shards, about 2 min 40 s left"]


def test_an_index_that_is_built_says_how_long_it_still_takes(
    tmp_path: Path, tiny_model_dir: Path, make_records, capsys, on_terminal
) -> None:
    """Four shards, the first of which was there: the estimate comes after each that is made, but not with the last."""
    on_terminal(True)
    _, rows = make_records(num_forget=1, num_retain=8)
    write_records(tmp_path / "rows.jsonl", rows)
    command = ["index", "build", "--rows", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "index")]
    command += ["--model", str(tiny_model_dir), "--k", "64", "--shard-rows", "2", "--device", "cpu"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert re.findall(r"(\d) of 4 shards, about [\d.]+ s left", said) == ["1", "2", "3"]
    assert re.search(r"4 of 4 shards\r", said)
