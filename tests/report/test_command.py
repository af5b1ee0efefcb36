"""`rapidun report DIR...`"""

from pathlib import Path

import pytest

from rapidun.errors import DataError
from rapidun.report.command import report


def test_a_run_folder_gets_its_report(mapping_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([mapping_run]) == 0
    assert (mapping_run / "report.html").is_file()
    assert f"report: {mapping_run / 'report.html'}" in capsys.readouterr().out


def test_a_sweep_folder_gets_a_summary_and_an_index(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([sweep_dir]) == 0
    assert {"summary.csv", "summary.json", "summary.md", "sweep.html"} <= {path.name for path in sweep_dir.iterdir()}
    page = (sweep_dir / "sweep.html").read_text()
    assert 'href="a0/report.html"' in page
    assert (sweep_dir / "a0" / "report.html").is_file()
    assert "ValueError: loss is nan" in page
    assert "<script" not in page
    shown = capsys.readouterr().out
    assert "6 cells: 4 done, 1 failed, 1 unfinished" in shown


def test_markup_in_a_sweep_is_text(sweep_dir: Path) -> None:
    evil = "<script>alert(1)</script>"
    for name in ("status.json", "overrides.json"):
        path = sweep_dir / "c0" / name
        path.write_text(path.read_text().replace("loss is nan", evil).replace("model=tiny", evil))
    report([sweep_dir])
    page = (sweep_dir / "sweep.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2


def test_one_damaged_cell_does_not_stop_the_index(sweep_dir: Path) -> None:
    (sweep_dir / "a1" / "evaluation").mkdir()
    (sweep_dir / "a1" / "evaluation" / "after.json").write_text("{")
    assert report([sweep_dir]) == 0
    page = (sweep_dir / "sweep.html").read_text()
    assert 'href="a0/report.html"' in page
    assert 'href="a1/report.html"' not in page


def test_other_folders_are_refused_before_anything_is_written(mapping_run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"need a run folder .* got a folder without either"):
        report([mapping_run, empty])
    assert not (mapping_run / "report.html").exists()
    with pytest.raises(DataError, match="got no folder"):
        report([tmp_path / "absent"])
