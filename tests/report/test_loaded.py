"""Tables for people who analyse: runs.csv, the same as Parquet and as a pandas frame."""

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import rapidun
from rapidun.base.errors import ConfigError, DataError
from rapidun.cli.report import main
from rapidun.report.sweep.exports import write_sweep_summary

MakeCell = Callable[..., Path]


@pytest.fixture
def grid(tmp_path: Path, new_cell: MakeCell) -> Path:
    """Two swept settings of two seeds, one of them failed; one cell was never started."""
    sweep = tmp_path / "grid"
    for number, (tau, flag, seed, asr) in enumerate(
        (("0.5", "true", 0, 0.25), ("0.5", "true", 1, 0.5), ("2", "false", 0, 0.125))
    ):
        overrides = [
            f"mapping.tau_f={tau}",
            f"mapping.bounded={flag}",
            "unlearning=npo",
            "resources=gpu",
            f"seed={seed}",
        ]
        result = {"name": "run", "seed": seed, "asr_seen": asr, "before.asr_seen": 1.0, "seconds.poison": 40.0}
        new_cell(sweep / f"12345e000{number}", overrides, result)
    new_cell(
        sweep / "c", ["mapping.tau_f=2", "mapping.bounded=false", "unlearning=npo", "seed=1"], None, "ValueError: nan"
    )
    plan = [{"hash": "zz", "overrides": ["mapping.tau_f=7", "unlearning=npo", "seed=0"]}]
    (sweep / "sweep.json").write_text(json.dumps({"cells": plan}))
    return sweep


def test_runs_csv_has_a_row_for_each_run_and_every_number(grid: Path) -> None:
    write_sweep_summary(grid)
    with (grid / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # settings that all share, launcher and resources are no columns
    assert list(rows[0]) == [
        "cell", "setting", "mapping.tau_f", "mapping.bounded", "seed", "state", "error", "asr_seen", "before.asr_seen",
        "seconds.poison", "path",
    ]  # fmt: skip
    assert [row["cell"] for row in rows] == ["12345e0000", "12345e0001", "12345e0002", "c", "zz"]
    assert [row["path"] for row in rows] == [row["cell"] for row in rows]
    assert (rows[1]["mapping.tau_f"], rows[1]["seed"], rows[1]["asr_seen"]) == ("0.5", "1", "0.5")
    assert (rows[3]["state"], rows[3]["error"], rows[3]["asr_seen"]) == ("failed", "ValueError: nan", "")
    assert rows[4]["state"] == "not started"


def test_summary_csv_is_of_a_readable_width(tmp_path: Path, new_cell: MakeCell) -> None:
    """Of a result of 300 numbers the nine main ones with their intervals; the rest is in runs.csv."""
    many = {f"asr_seen.family_{number}": 0.5 for number in range(300)}
    for seed in (0, 1):
        new_cell(tmp_path / str(seed), ["unlearning=npo", f"seed={seed}"], {"asr_seen": 0.1, "ppl_clean": 2.0, **many})
    write_sweep_summary(tmp_path)
    header = (tmp_path / "summary.csv").read_text().split("\n")[0].split(",")
    assert header == [
        "unlearning",
        "n",
        *(f"{name}{end}" for name in ("asr_seen", "ppl_clean") for end in ("", ".low", ".high")),
    ]
    assert len((tmp_path / "runs.csv").read_text().split("\n")[0].split(",")) > 300


def test_frame_of_a_sweep(grid: Path) -> None:
    """The table of runs.csv with types: numbers and truths are such, names stay text, what is absent is NaN."""
    frame = rapidun.load(grid).to_frame()
    write_sweep_summary(grid)
    assert list(frame) == (grid / "runs.csv").read_text().split("\n")[0].split(",")
    assert frame["cell"].tolist()[:2] == ["12345e0000", "12345e0001"]
    assert frame["mapping.tau_f"].tolist() == [0.5, 0.5, 2.0, 2.0, 7.0]
    assert frame["mapping.bounded"].tolist()[:4] == [True, True, False, False]
    assert frame["seed"].tolist() == [0, 1, 0, 1, 0]
    done = frame[frame["state"] == "done"]
    # by setting the means of the summary
    assert done.groupby("setting")["asr_seen"].mean().to_dict() == {
        "mapping.bounded=true mapping.tau_f=0.5": 0.375, "mapping.bounded=false mapping.tau_f=2": 0.125,
    }  # fmt: skip
    assert frame["asr_seen"].isna().tolist() == [False, False, False, True, True]
    assert all(Path(path).is_dir() for path in done["path"])


def test_frame_of_a_run_is_one_row(run_dir: Path) -> None:
    frame = rapidun.load(str(run_dir)).to_frame()
    (row,) = frame.to_dict("records")
    result = json.loads((run_dir / "result.json").read_text())
    assert row["seed"] == 42 and row["state"] == "done" and row["path"] == str(run_dir)
    assert {name: row[name] for name in result if name not in ("name", "seed")} == {
        name: value for name, value in result.items() if name not in ("name", "seed")
    }


def test_parquet_on_request(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tables" / "runs.parquet"
    assert main([str(grid), "--parquet", str(file)]) == 0
    assert str(file) in capsys.readouterr().out.replace("\n", "")
    pd.testing.assert_frame_equal(
        pd.read_parquet(file), rapidun.load(grid).to_frame(), check_dtype=False, check_column_type=False
    )
    assert not list(grid.glob("*.parquet"))


def test_without_the_packages_it_is_said_and_nothing_is_written(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        return None if name in ("pandas", "pyarrow") else there(name, package)

    monkeypatch.setattr("rapidun.report.sweep.runs.find_spec", find_spec)
    monkeypatch.setattr("rapidun.report.loaded.find_spec", find_spec)
    with pytest.raises(ConfigError, match=r"need the package pyarrow.*rapidun\[tables\]"):
        main([str(grid), "--parquet", str(grid / "x.parquet")])
    assert not (grid / "runs.csv").exists()
    with pytest.raises(ConfigError, match=r"need the package pandas.*rapidun\[tables\]"):
        rapidun.load(grid).to_frame()


def test_what_is_no_folder_of_ours_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="need a run folder"):
            rapidun.load(folder)


def test_loading_brings_pandas_only_for_a_frame(run_dir: Path) -> None:
    code = (
        f"import sys, rapidun; found = rapidun.load({str(run_dir)!r}); heavy = ('pandas', 'pyarrow', 'torch'); "
        "print([m for m in heavy if m in sys.modules]); found.summary(); print('pandas' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True).stdout
    assert shown.split("\n")[:2] == ["[]", "False"]


def test_a_setting_that_is_called_as_a_number_keeps_its_column(tmp_path: Path, new_cell: MakeCell) -> None:
    for k in (1, 2):
        new_cell(tmp_path / str(k), [f"unlearning.num_steps={k}", "seed=0"], {"unlearning.num_steps": 10.0 * k})
    frame = rapidun.load(tmp_path).to_frame()
    assert frame["unlearning.num_steps"].tolist() == [1, 2]
    assert frame["result.unlearning.num_steps"].tolist() == [10.0, 20.0]


def test_null_and_text_in_one_setting(tmp_path: Path, new_cell: MakeCell) -> None:
    for number, value in enumerate(("null", "3")):
        new_cell(tmp_path / str(number), [f"mapping.top_k={value}", "seed=0"], {"asr_seen": 0.1})
    column = rapidun.load(tmp_path).to_frame()["mapping.top_k"]
    assert column.isna().tolist() == [True, False] and column[1] == 3
