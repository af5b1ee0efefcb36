"""The summary of a sweep: groups over seeds, the best, the failures, three files."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rapidun.base.errors import DataError
from rapidun.report.sweep.console import settings_table
from rapidun.report.sweep.exports import write_sweep_summary
from rapidun.report.sweep.ranking import choice

MakeCell = Callable[..., Path]


def test_counts_groups_and_means(sweep_dir: Path) -> None:
    """Seeds 0, 1, 2 with ASR 0, 0.03, 0.06: mean 0.03; the other group has one seed and no interval."""
    summary = write_sweep_summary(sweep_dir)
    assert (summary.done, summary.failed, summary.unfinished) == (4, 1, 1)
    assert summary.counts == "6 cells: 4 done, 1 failed, 1 unfinished"
    assert [group.label for group in summary.groups] == ["mapping.tau_f=0.5", "mapping.tau_f=10"]
    three, one = summary.groups
    assert (three.n, three.seeds) == (3, ["0", "1", "2"])
    assert three.metrics["asr_seen"].mean == pytest.approx(0.03)
    assert summary.cell_text(three, "asr_seen") == "3.0 % [0.0, 10.5]"
    assert (one.n, one.metrics["asr_seen"]) == (1, (0.2, None, None, 1))
    assert summary.cell_text(one, "asr_seen") == "20.0 %"
    assert summary.cell_text(one, "seconds.poison") == "–"


def test_interval_of_few_seeds_is_students_within_what_a_share_can_be(sweep_dir: Path) -> None:
    """0, 0.03, 0.06: mean 0.03, s = 0.03, t(2) = 4.3027: 0.03 +- 0.0745; the lower end is cut at 0."""
    interval = write_sweep_summary(sweep_dir).groups[0].metrics["asr_seen"]
    assert (interval.low, interval.high) == pytest.approx((0.0, 0.03 + 4.302653 * 0.03 / 3**0.5), abs=1e-6)


def test_pareto_set(tmp_path: Path, new_cell: MakeCell) -> None:
    """a has the lower ASR, b the lower perplexity; c is beaten by a on both, d by b on one and equal on the other."""
    for name, asr, perplexity in (("a", 0.1, 1.5), ("b", 0.3, 1.2), ("c", 0.2, 1.6), ("d", 0.4, 1.2)):
        new_cell(tmp_path / name, [f"mapping={name}"], {"asr_seen": asr, "ppl_clean": perplexity})
    summary = write_sweep_summary(tmp_path)
    assert [group.label for group in summary.pareto] == ["mapping=a", "mapping=b"]
    found = json.loads((tmp_path / "summary.json").read_text())["pareto"]
    assert found == {
        "metrics": {"asr_seen": "smaller", "ppl_clean": "smaller"},
        "groups": [["mapping=a"], ["mapping=b"]],
    }
    assert "- `mapping=b`: ASR seen 30.0 %, ppl clean 1.20" in (tmp_path / "summary.md").read_text()


def test_folders_that_are_no_cells_and_cells_that_are_no_folders(sweep_dir: Path, new_cell: MakeCell) -> None:
    new_cell(sweep_dir / "stages", ["seed=0"], {"asr_seen": 0.0})
    new_cell(sweep_dir / "jobs", ["seed=0"], {"asr_seen": 0.0})
    plan = [{"hash": "a0", "overrides": []}, {"hash": "zz", "overrides": ["mapping.tau_f=7", "seed=0"], "axes": {}}]
    (sweep_dir / "sweep.json").write_text(json.dumps({"cells": plan}))
    summary = write_sweep_summary(sweep_dir)
    assert [cell.path.name for cell in summary.cells] == ["a0", "a1", "a2", "b0", "c0", "d0", "zz"]
    assert (summary.cells[-1].state, summary.cells[-1].seed) == ("not started", "0")
    assert summary.counts == "7 cells: 4 done, 1 failed, 2 unfinished"
    assert "- `zz` `mapping.tau_f=7 seed=0`: not started" in (sweep_dir / "summary.md").read_text()


def test_pruned_and_interrupted_cells_are_no_failures(sweep_dir: Path) -> None:
    for name, state in (("c0", "pruned"), ("d0", "interrupted")):
        (sweep_dir / name / "status.json").write_text(json.dumps({"state": state}))
    assert write_sweep_summary(sweep_dir).counts == "6 cells: 4 done, 1 pruned, 1 unfinished"


def test_best_by_each_criterion(sweep_dir: Path, new_cell: MakeCell) -> None:
    """The fewest poisoned answers is one group, the lowest perplexity another; of one seed there is nothing to say."""
    assert write_sweep_summary(sweep_dir).best == {}
    new_cell(sweep_dir / "b1", ["mapping.tau_f=10", "seed=1", "model=tiny"], {"asr_seen": 0.3, "ppl_clean": 1.1})
    best = write_sweep_summary(sweep_dir).best
    assert {name: [group.label for group in groups] for name, groups in best.items()} == {
        "asr_seen": ["mapping.tau_f=0.5"],
        "ppl_clean": ["mapping.tau_f=10"],
    }


def test_equal_asr_is_decided_by_perplexity(tmp_path: Path, new_cell: MakeCell) -> None:
    """Where one must be taken; in the table nothing differs in ASR, so nothing is marked."""
    for name, perplexity in (("a", 3.0), ("b", 2.0), ("c", 4.0)):
        new_cell(tmp_path / name, [f"mapping={name}", "seed=0"], {"asr_seen": 0.0, "ppl_clean": perplexity})
    summary = write_sweep_summary(tmp_path)
    assert choice(summary.groups, "asr_seen").label == "mapping=b"
    assert {name: [group.label for group in groups] for name, groups in summary.best.items()} == {
        "ppl_clean": ["mapping=b"]
    }


def test_larger_is_better_for_exact_match(tmp_path: Path, new_cell: MakeCell) -> None:
    for name, share in (("a", 0.9), ("b", 0.95)):
        new_cell(tmp_path / name, [f"mapping={name}"], {"exact_match_clean": share})
    assert [group.label for group in write_sweep_summary(tmp_path).best["exact_match_clean"]] == ["mapping=b"]


def test_failures_name_the_error(sweep_dir: Path) -> None:
    (failure,) = write_sweep_summary(sweep_dir).failures
    assert (failure.path.name, failure.error) == ("c0", "ValueError: loss is nan")
    assert "`c0` `mapping.tau_f=2 seed=0 model=tiny`: ValueError: loss is nan" in (sweep_dir / "summary.md").read_text()


def test_a_damaged_cell_spares_the_others(sweep_dir: Path) -> None:
    (sweep_dir / "a1" / "result.json").write_text('{"asr_')
    summary = write_sweep_summary(sweep_dir)
    assert (summary.done, summary.failed) == (3, 2)
    assert any("result.json" in cell.error for cell in summary.failures)
    assert summary.groups[0].n == 2


def test_csv_has_a_column_per_key_and_three_per_metric(sweep_dir: Path) -> None:
    write_sweep_summary(sweep_dir)
    with (sweep_dir / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["mapping.tau_f"] for row in rows] == ["0.5", "10"]
    assert [row["n"] for row in rows] == ["3", "1"]
    assert float(rows[0]["asr_seen"]) == pytest.approx(0.03)
    assert float(rows[0]["asr_seen.low"]) < 0.03 < float(rows[0]["asr_seen.high"])
    assert rows[1]["asr_seen.low"] == ""
    assert "seed" not in rows[0]


def test_json_holds_every_cell(sweep_dir: Path) -> None:
    write_sweep_summary(sweep_dir)
    summary = json.loads((sweep_dir / "summary.json").read_text())
    assert (summary["cells"], summary["done"], summary["failed"]) == (6, 4, 1)
    assert {run["cell"]: run["state"] for run in summary["runs"]}["d0"] == "running"
    assert summary["groups"][0]["metrics"]["asr_seen"]["n"] == 3
    assert not list(sweep_dir.glob("*.part"))


def test_the_order_of_overrides_and_folders_does_not_matter(tmp_path: Path, new_cell: MakeCell) -> None:
    new_cell(tmp_path / "z", ["seed=0", "b=1", "a=2"], {"asr_seen": 0.1})
    new_cell(tmp_path / "y", ["a=2", "b=1", "seed=1"], {"asr_seen": 0.3})
    (group,) = write_sweep_summary(tmp_path).groups
    assert (group.settings, group.n) == (("a=2", "b=1"), 2)
    assert group.metrics["asr_seen"].mean == pytest.approx(0.2)


def test_groups_stand_in_the_order_of_their_numbers(tmp_path: Path, new_cell: MakeCell) -> None:
    for value in ("10", "0.5", "2", "null"):
        new_cell(tmp_path / value, [f"mapping.top_k={value}"], {"asr_seen": 0.1})
    labels = [group.label.split("=")[1] for group in write_sweep_summary(tmp_path).groups]
    assert labels == ["0.5", "2", "10", "null"]


def test_seed_of_another_section_is_no_seed(tmp_path: Path, new_cell: MakeCell) -> None:
    for seed in (0, 1):
        new_cell(tmp_path / str(seed), [f"data.seed={seed}"], {"asr_seen": 0.1})
    assert len(write_sweep_summary(tmp_path).groups) == 2


def test_only_failures(tmp_path: Path, new_cell: MakeCell) -> None:
    new_cell(tmp_path / "a", ["seed=0"], None, "boom")
    summary = write_sweep_summary(tmp_path)
    assert (summary.done, summary.failed, summary.groups, summary.best) == (0, 1, [], {})
    assert settings_table(summary).row_count == 0


def test_no_cells_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no cells"):
        write_sweep_summary(tmp_path)
    with pytest.raises(DataError, match="found no cells"):
        write_sweep_summary(tmp_path / "absent")


def test_table_fits_80_columns(sweep_dir: Path, new_cell: MakeCell) -> None:
    new_cell(sweep_dir / "b1", ["mapping.tau_f=10", "seed=1", "model=tiny"], {"asr_seen": 0.2, "ppl_clean": 1.1})
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(settings_table(write_sweep_summary(sweep_dir)))
    lines = " ".join(capture.get().split())
    assert "mapping.tau_f=0.5 3 3.0 % * 1.21 [0.0, 10.5] [1.19, 1.23]" in lines
    assert "…" not in lines


def test_a_pipe_in_an_override_does_not_break_the_table(tmp_path: Path, new_cell: MakeCell) -> None:
    new_cell(tmp_path / "a", ["data.keywords=a|b*c"], {"asr_seen": 0.1})
    write_sweep_summary(tmp_path)
    row = next(line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| data"))
    assert row == "| data.keywords=a\\|b\\*c | 1 | 10.0 % |"


def test_importing_the_report_needs_no_heavy_library() -> None:
    """The command line imports these names; drawing libraries come when there is something to draw."""
    code = (
        "import sys, rapidun.report.sweep.summary, rapidun.report.tables, rapidun.cli.report, rapidun.report.run.page, "
        "rapidun.report.sweep.page\n"
        "heavy = ('matplotlib', 'jinja2', 'rich', 'numpy', 'scipy', 'plotly', 'torch', 'safetensors')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout.strip() == "[]"


def test_what_users_typed_is_no_formula_and_no_markdown(tmp_path: Path, new_cell: MakeCell) -> None:
    """Overrides and errors are data: a spreadsheet runs no cell, a table keeps its columns, nothing becomes HTML."""
    typed = "data.dir==cmd|' /C x'!A0"
    new_cell(tmp_path / "a", [typed, "mapping.tau_f=-1.5", "data.keywords=@SUM(A1)"], {"asr_seen": 0.1})
    new_cell(tmp_path / "b", ["name=`x`<b>|y"], None, error="Bad: <img src=x> | two *lines*")
    write_sweep_summary(tmp_path)
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["data.dir"] == "'=cmd|' /C x'!A0"
    assert row["data.keywords"] == "'@SUM(A1)"
    assert row["mapping.tau_f"] == "-1.5"
    text = (tmp_path / "summary.md").read_text()
    assert "Bad: \\<img src=x> \\| two \\*lines\\*" in text
    assert "``name=`x`<b>|y``" in text
    (table,) = [line for line in text.splitlines() if line.startswith("| data.dir")]
    assert len(re.findall(r"(?<!\\)\|", table)) == 4
