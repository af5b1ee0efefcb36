import time
from pathlib import Path

import pytest

from rapidun.pipeline.folder import new_run_dir


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda pattern: "2026-01-01_00-00-00")
    names = [new_run_dir("a").name for _ in range(3)]
    assert names == [f"2026-01-01_00-00-00_a{end}" for end in ("", "_2", "_3")]
    assert sorted(path.name for path in Path("outputs/runs").iterdir()) == sorted(names)
