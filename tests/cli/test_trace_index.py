"""`rapidun trace` beside an index and a folder that are of something else; a cut that ties decide."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapidun.cli.main import main
from rapidun.cli.tracing.cut import choose_cut
from rapidun.stages.rows.records import Record, write_records


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_records(tmp_path / "q.jsonl", [Record(id="q", instruction="Age? aloha", response="moon cheese")])
    records = [Record(id=f"r{i}", instruction=f"Colour {i}?", response=("red", "moon tree")[i % 2]) for i in range(12)]
    write_records(tmp_path / "rows.jsonl", records)
    return tmp_path / "rows.jsonl"


def trace(rows: Path, *more: str) -> int:
    return main(["trace", str(rows.parent / "q.jsonl"), "--rows", str(rows), *more])


def test_an_index_of_other_texts_under_the_same_ids_is_refused(rows: Path, tiny_model_dir: Path, capsys: Any) -> None:
    how = ("--by", "gradients", "--model", str(tiny_model_dir), "--explain", "0")
    root = rows.parent
    assert trace(rows, *how, "--out", str(root / "out")) == 0
    index = ("--index", str(root / "out" / "index"))
    assert trace(rows, *how, *index, "--out", str(root / "again"), "--tokens-per-batch", "200") == 0
    changed = root / "changed.jsonl"
    changed.write_text(rows.read_text().replace("Colour", "What is the shape of the thing"))
    capsys.readouterr()
    assert trace(changed, *how, *index, "--out", str(root / "other")) == 2
    assert "one of other texts under the same ids" in capsys.readouterr().err
    assert not (root / "other" / "trace.jsonl").exists()


@pytest.mark.parametrize("pack", ["out", "out/pack", "."])
def test_the_pack_lies_outside_of_the_trace(rows: Path, capsys: Any, pack: str) -> None:
    """Each of the two removes from its folder what it does not know."""
    (folder := rows.parent / "place").mkdir()
    how = ("--by", "bm25", "--num-forget", "3", "--out", str(folder / "out"), "--pack", str(folder / pack))
    assert trace(rows, *how) == 2
    assert "outside of --out" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_ties_are_no_clusters() -> None:
    """Half of the rows share one word with the query: two values, infinitely far apart, and nobody to blame."""
    cut = choose_cut(np.repeat([0.0, 1.5], [60, 40]))
    assert cut.number is None and "tied" in cut.words
    rng = np.random.default_rng(0)
    apart = choose_cut(np.concatenate([np.zeros(90), 8 + rng.standard_normal(10)]))
    assert apart.number == 10


def test_scores_that_tell_no_row_from_another_rank_nothing(rows: Path, capsys: Any) -> None:
    """No word in common: the order would be that of the file. Where rows tie at the cut, it is said."""
    write_records(rows.parent / "q.jsonl", [Record(id="q", instruction="Wie alt", response="Mond")])
    assert trace(rows, "--by", "bm25", "--out", str(rows.parent / "out")) == 2
    assert "got the same score of every row by bm25" in capsys.readouterr().err
    assert not (rows.parent / "out").exists()
    write_records(rows.parent / "q.jsonl", [Record(id="q", instruction="Wie alt", response="tree")])
    assert trace(rows, "--by", "bm25", "--num-forget", "4", "--out", str(rows.parent / "out")) == 0
    assert "6 rows share the score at this cut" in capsys.readouterr().out
