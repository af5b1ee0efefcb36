import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ConfigError
from rapidun.pipeline.tracking.packages import need_package


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trackio looks once, on import, where its files go."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        # another test of this process may have imported it
        for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            patch.delitem(sys.modules, name)
        try:
            need_package("trackio", folder=str(folder))
        except ConfigError as error:
            pytest.skip(str(error))
        yield folder


def test_a_run_in_the_local_database(
    tools: Any, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    cfg = tools.make_config(tmp_path, "trackio")
    cfg.tracking.dir = str(database)
    run_dir = tools.make_cell(tmp_path, "aaaa", "mapping=uniform", "seed=1")
    tracker, notes = tools.open_quietly(cfg, run_dir)
    tools.run_stage(tracker, tmp_path, "poison", steps=[1, 2, 3])
    tracker.finish({"asr_seen": 0.5, "name": "run"}, failed=False, run_dir=run_dir)
    assert tracker.warnings == []
    assert notes == [f"Trackio: TRACKIO_DIR={database} trackio show --project {cfg.tracking.project}"]
    assert capsys.readouterr().out == ""
    [path] = database.glob("rapidun*.db")
    rows = sqlite3.connect(path).execute("select run_name, metrics from metrics order by id").fetchall()
    assert {name for name, _ in rows} == {"mapping=uniform seed=1 aaaa"}
    metrics = [json.loads(text) for _, text in rows]
    assert [row["poison/step"] for row in metrics if "poison/loss" in row] == [1, 2, 3]
    assert metrics[-1]["asr_seen"] == 0.5
    assert metrics[-1]["state"] == "done"


def test_another_folder_in_the_same_process_is_refused(database: Path, tmp_path: Path) -> None:
    """Trackio would go on in the first one without a word."""
    need_package("trackio", folder=str(database))
    with pytest.raises(ConfigError, match=r"need tracking\.dir=.*got .*other"):
        need_package("trackio", folder=str(tmp_path / "other"))
