"""The age of a file, where this host's clock is hours from the file system's."""

import os
import time
from pathlib import Path

import pytest

from rapidun.base import heartbeat
from rapidun.base.clock import age, ahead
from rapidun.base.parts import part_of, sweep_parts


@pytest.mark.parametrize("hours", [-3, 0, 3])
def test_ages_are_those_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    file = tmp_path / "alive.json"
    file.touch()
    then = file.stat().st_mtime - 100
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    assert age(file) < 10
    assert heartbeat.seconds_since(file) == pytest.approx(0, abs=10)
    os.utime(file, (then, then))
    assert heartbeat.seconds_since(file) == pytest.approx(100, abs=10)
    assert ahead(tmp_path) == pytest.approx(-3600 * hours, abs=5)
    assert [path.name for path in tmp_path.iterdir()] == ["alive.json"]


def test_a_live_writer_elsewhere_keeps_its_file_whatever_the_clock_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = part_of(tmp_path / "x")
    elsewhere = part.with_name(part.name.replace(part.name.split(".")[-2], "0123abcd-1-89abcdef"))
    elsewhere.touch()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    assert sweep_parts(tmp_path) == []
    assert elsewhere.exists()


def test_where_no_probe_can_be_written_this_hosts_clock_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "alive.json"
    file.touch()
    monkeypatch.setattr("rapidun.base.clock.ahead", lambda folder: None)
    monkeypatch.setattr("rapidun.base.clock._measured", {})
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 500)
    assert age(file) == pytest.approx(500, abs=10)
    assert heartbeat.seconds_since(tmp_path / "none") is None
