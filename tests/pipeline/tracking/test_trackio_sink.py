import json
import os
import sqlite3
import subprocess
import sys
import time
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


# one cell of a sweep: a process of its own, as a pool or a cluster starts it
WRITER = """
import importlib.util, sys, time
from pathlib import Path

root, database, number, tools = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
spec = importlib.util.spec_from_file_location("tools", tools)
tools = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tools)
import trackio

cfg = tools.make_config(root, "trackio")
cfg.tracking.dir, cfg.store_dir = database, str(root / f"store{number}")
cell = root / f"cell{number:02d}"
# all at once, however long each took to begin
(root / f"ready{number}").touch()
while not (root / "go").exists():
    time.sleep(0.01)
tracker, _ = tools.open_quietly(cfg, cell)
tools.run_stage(tracker, root / f"own{number}", "poison", steps=range(1, 41))
tracker.finish({"asr_seen": number / 100, "name": "run"}, failed=False, run_dir=cell)
assert tracker.warnings == [], tracker.warnings
"""


@pytest.mark.slow
def test_sixteen_writers_at_once_lose_nothing(tools: Any, database: Path, tmp_path: Path) -> None:
    """Sixteen processes, one project: every step of every run is there, once, and so is how each ended."""
    folder = tmp_path / "trackio"
    for number in range(16):
        tools.make_cell(tmp_path, f"cell{number:02d}", "mapping=uniform", f"seed={number}")
    environment = {**os.environ, "TRACKIO_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(folder)]
    conftest = str(Path(__file__).with_name("conftest.py"))
    writers = [
        subprocess.Popen([*command, str(number), conftest], env=environment, stderr=subprocess.PIPE, text=True)
        for number in range(16)
    ]
    while len(list(tmp_path.glob("ready*"))) < 16:
        assert all(writer.poll() is None for writer in writers), [
            writer.stderr and writer.stderr.read() for writer in writers if writer.poll()
        ]
        time.sleep(0.05)
    (tmp_path / "go").touch()
    for writer in writers:
        _, error = writer.communicate(timeout=300)
        assert writer.returncode == 0, error
    [path] = folder.glob("rapidun*.db")
    rows = sqlite3.connect(path).execute("select run_name, metrics from metrics order by id").fetchall()
    logged: dict[str, list[dict[str, Any]]] = {}
    for name, text in rows:
        logged.setdefault(name, []).append(json.loads(text))
    assert sorted(logged) == sorted(f"mapping=uniform seed={number} cell{number:02d}" for number in range(16))
    for name, metrics in logged.items():
        assert [row["poison/step"] for row in metrics if "poison/loss" in row] == list(range(1, 41)), name
        assert metrics[-1]["asr_seen"] == int(name[-2:]) / 100 and metrics[-1]["state"] == "done", name
