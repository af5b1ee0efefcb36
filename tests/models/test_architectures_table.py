"""benchmarks/architectures.py: a handful of its architectures here, all of them (slow), and the table in docs."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HANDFUL = ("phi3", "rwkv", "bert")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


table = load("architectures")


def check(row: Any) -> None:
    """It goes through all stages and its batches equal single rows, or it was refused before the first stage."""
    if row.failed is None:
        assert row.loads
        assert set(row.done) == set(table.STAGES)
        assert row.equal is True
    else:
        assert row.failed == "", f"{row.kind} failed in {row.failed}: {row.words}"
        assert re.match(r"model: need ", row.words), row.words


@pytest.mark.parametrize("kind", HANDFUL)
def test_an_architecture_works_or_is_refused_first(kind: str) -> None:
    row = table.run(kind)
    check(row)
    assert (row.failed is None) is (kind != "bert")
    assert row.one_by_one is (kind == "rwkv")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in table.KINDS if kind not in HANDFUL])
def test_every_architecture_works_or_is_refused_first(kind: str) -> None:
    check(table.run(kind))


def test_the_table_in_docs_has_every_architecture() -> None:
    """`python benchmarks/architectures.py --write docs/architectures.md` makes it."""
    lines = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    rows = {row[0]: row for row in cells if row[0] != "architecture"}
    assert list(rows) and set(rows) == set(table.KINDS)
    assert len(rows) >= 90
    for row in rows.values():
        if len(row) == 9:
            assert row[3:8] == ["yes"] * 5, row
            assert row[8] in ("yes", "yes, one by one"), row
        else:
            assert row[1] == "before the first stage" and row[2].startswith("model: need "), row


def test_the_table_says_what_failed() -> None:
    good = table.Row("a", loads=True, num_parameters=1234, targets=["x"], done=list(table.STAGES), equal=True)
    late = table.Row("b", failed="poison", words="it broke | here")
    lines = table.table([good, late]).splitlines()
    assert "1 of 2 go through, 0 of them one by one; 1 are refused." in lines
    assert "| a | 1,234 | `x` | yes | yes | yes | yes | yes | yes |" in lines
    assert "| b | in poison | it broke \\| here |" in lines


def test_the_command_prints_one_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main_table(["vit", "--write", str(tmp_path / "t.md")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_architectures"] == 1
    assert found["failed_after_the_first_stage"] == []
    assert "| vit | before the first stage |" in (tmp_path / "t.md").read_text()
