"""`rapidun report DIR...`"""

from collections.abc import Callable
from pathlib import Path

import pytest

from rapidun.base.errors import DataError
from rapidun.cli.report import main, report


def test_a_run_folder_gets_its_report(mapping_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([mapping_run]) == 0
    assert (mapping_run / "report.html").is_file()
    assert f"report: {mapping_run / 'report.html'}" in capsys.readouterr().out


def test_a_sweep_folder_gets_a_summary_and_an_index(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([sweep_dir], cells=True) == 0
    assert {"report.html", "summary.csv", "summary.json", "summary.md", "sweep.html"} <= {
        path.name for path in sweep_dir.iterdir()
    }
    page = (sweep_dir / "sweep.html").read_text()
    assert 'href="a0/report.html"' in page
    assert (sweep_dir / "a0" / "report.html").is_file()
    assert 'href="report.html"' in page
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
    assert report([sweep_dir], cells=True) == 0
    page = (sweep_dir / "sweep.html").read_text()
    assert 'href="a0/report.html"' in page
    assert 'href="a1/report.html"' not in page


def test_cells_keep_their_own_reports_unless_asked(sweep_dir: Path) -> None:
    assert report([sweep_dir]) == 0
    assert not (sweep_dir / "a0" / "report.html").exists()


def test_several_runs_and_sweeps_make_one_page(
    sweep_dir: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report([sweep_dir, run_dir]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert "7 cells: 5 done" in page
    assert not (sweep_dir / "report.html").exists()
    assert '"source"' in page  # where a cell comes from is a column


def test_files_for_papers(sweep_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = [str(sweep_dir), "--csv", f"{out}/a.csv", "--md", f"{out}/a.md", "--png", f"{out}/png"]
    assert main([*arguments, "--html", f"{out}/a.html"]) == 0
    assert (out / "a.csv").read_text() == (sweep_dir / "summary.csv").read_text()
    assert (out / "a.md").read_text() == (sweep_dir / "summary.md").read_text()
    names = sorted(path.name for path in (out / "png").iterdir())
    assert names == ["criteria.png", "pareto.png"]  # one swept setting and no logs: no heat map, no curves
    assert all((out / "png" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert (out / "a.html").is_file() and not (sweep_dir / "report.html").exists()
    shown = capsys.readouterr().out
    assert all(f"report: {out / name}" in shown for name in ("a.csv", "a.md", "a.html", "png/pareto.png"))
    assert not list(tmp_path.rglob("*.part"))


def test_other_folders_are_refused_before_anything_is_written(mapping_run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"need a run folder .* got a folder without either"):
        report([mapping_run, empty])
    assert not (mapping_run / "report.html").exists()
    with pytest.raises(DataError, match="got no folder"):
        report([tmp_path / "absent"])


def test_a_place_that_cannot_be_written_is_named(mapping_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"places to write to, got .*file"):
        main([str(mapping_run), "--csv", str(tmp_path / "file" / "a.csv")])


def test_a_sweep_without_triggers_is_not_judged_by_attacks(tmp_path: Path, new_cell: Callable[..., Path]) -> None:
    for name, strength in (("a", 0.1), ("b", 0.4)):
        result = {"extraction_strength_forget": strength, "rougeL_retain": 0.9, "ppl_clean": 3.0, "seed": 1}
        new_cell(tmp_path / name, [f"unlearning.learning_rate={strength}"], result)
    report([tmp_path])
    page = (tmp_path / "sweep.html").read_text()
    assert "beside the extraction strength of the forget rows" in page and "ASR" not in page
