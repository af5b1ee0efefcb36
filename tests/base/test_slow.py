"""Lines about long work, with a clock of the test's own."""

import hashlib
from pathlib import Path

import pytest

from rapidun.base import files, slow
from rapidun.base.slow import Slow


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_after_five_seconds_then_every_thirty() -> None:
    """10 rows a second: 60 of 1000 after 6 s leave 94 s; 370 after 37 s leave 63."""
    clock, said = Clock(), []
    told = Slow("index", unit="rows", tell=said.append, clock=clock)
    for second in range(1, 101):
        clock.now = float(second)
        if second != 5:
            told(10 * second, 1000)
    assert said[:2] == ["index: 60 of 1000 rows, about 94 s left", "index: 360 of 1000 rows, about 64 s left"]
    assert len(said) == 4  # 6, 36, 66, 96


def test_what_is_quick_or_done_says_nothing() -> None:
    clock, said = Clock(), []
    told = Slow("index", tell=said.append, clock=clock)
    clock.now = 4.9
    told(1, 2)
    clock.now = 60.0
    told(2, 2)
    assert said == []
    told(0, 2)
    assert said == ["index: 0 %"]  # no pace yet, no estimate


def test_the_hash_of_a_large_file_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four pieces; by the clock each takes as long as a line waits."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)) * 16)
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.sha256_file(path) == whole
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(files, "LARGE_BYTES", 4096)
    monkeypatch.setattr(files, "PIECE_BYTES", 1024)
    monkeypatch.setattr(slow, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(slow, "EVERY_SECONDS", 0.0)
    assert files.sha256_file(path) == whole
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].split(",")[0] for line in said] == [
        f"reads {path} (0.0 GB) for its hash: {share} %" for share in (25, 50, 75)
    ]
