"""Half lines at the end of a growing file, and what processes that are gone left behind them."""

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest

from rapidun.base import parts
from rapidun.base.files import write_json
from rapidun.base.grown import append_line, mend, read_grown
from rapidun.base.parts import ABANDONED_SECONDS, part_of, sweep_parts

LINES = [{"stage": "a", "step": 1}, {"stage": "a", "step": 2}]
WHOLE = "".join(json.dumps(line) + "\n" for line in LINES)


@pytest.mark.parametrize("cut", range(len(json.dumps(LINES[1]))))
def test_a_line_cut_anywhere_is_left_out_and_the_next_one_stands_alone(tmp_path: Path, cut: int) -> None:
    """Cut before its last brace; without its line end alone it is whole."""
    path = tmp_path / "metrics.jsonl"
    first = json.dumps(LINES[0]) + "\n"
    path.write_text(first + json.dumps(LINES[1])[:cut])
    assert read_grown(path, "stage") == ([LINES[0]], int(cut > 0))
    append_line(path, LINES[1])
    assert read_grown(path, "stage") == (LINES, int(cut > 0))
    said = mend(path, "stage")
    assert ("1 line that was cut or damaged is left out, 2 stay" in said) == (cut > 0)
    assert path.read_text() == WHOLE
    assert mend(path, "stage") == ""


@pytest.mark.parametrize("odd", [b"\xff\xfe{}", b"[1]", b"3", b'{"other": 1}', b"[" * 3000, b"\x00" * 8])
def test_what_is_no_line_of_ours_is_left_out(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(odd + b"\n" + WHOLE.encode() + odd)
    assert read_grown(path, "stage") == (LINES, 2)
    assert "2 damaged lines are left out" in mend(path, "stage")
    assert path.read_text() == WHOLE


def test_a_line_that_only_unicode_ends_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"stage": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_grown(path, "stage") == ([{"stage": "a\u2028b"}], 0)
    assert read_grown(tmp_path / "none") == ([], 0)


def _write_and_die(folder: str) -> None:
    part_of(Path(folder) / "status.json").write_text("half")
    part_of(Path(folder) / "index", ending="whole").write_text("half")


def test_what_a_process_that_is_gone_left_is_swept_and_what_a_live_one_writes_stays(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(str(tmp_path),))
    process.start()
    process.join()
    ours = part_of(tmp_path / "result.json")
    ours.write_text("being written")
    (tmp_path / "named.part.txt").write_text("no part")
    (tmp_path / "artifact.0.part").mkdir()
    assert {path.name.split(".")[0] for path in sweep_parts(tmp_path)} == {"status", "index"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ours.name, "named.part.txt", "artifact.0.part"])
    assert sweep_parts(tmp_path / "none") == []


def test_of_another_host_and_of_earlier_versions_only_what_is_old_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_host", lambda: "0" * 8)
    theirs = part_of(tmp_path / "status.json")
    monkeypatch.undo()
    early, link = tmp_path / "status.json.0123abcd.part", tmp_path / ".data.part"
    for path in (theirs, early):
        path.write_text("half")
    link.symlink_to("nowhere")
    assert sweep_parts(tmp_path) == []
    then = time.time() - ABANDONED_SECONDS - 60
    for path in (theirs, early, link):
        os.utime(path, (then, then), follow_symlinks=False)
    assert sorted(sweep_parts(tmp_path)) == sorted([theirs, early, link])


def test_a_write_leaves_no_part_and_its_name_fits(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    name = part_of(tmp_path / "a.json").name
    assert parts.NAME.fullmatch(name) and len(name) < len("a.json") + 40
    assert socket.gethostname() not in name
