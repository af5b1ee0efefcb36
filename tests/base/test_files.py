import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rapidun.base import heartbeat
from rapidun.base.errors import ArtifactError
from rapidun.base.files import (
    fits_its_seal,
    link_to,
    read_json,
    read_jsonl,
    sealed,
    sha256_json,
    write_atomic,
    write_json,
    write_jsonl,
)
from rapidun.base.parts import part_of, sweep_parts


def test_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused_since_json_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_jsonl_keeps_line_separators_inside_strings(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for str.splitlines, but not in JSONL."""
    rows = [{"text": "a\u2028b\u0085c\nd"}, {"text": ""}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ArtifactError, match=r"a\.jsonl:2"):
        read_jsonl(path)
    with pytest.raises(ArtifactError, match="found none"):
        read_json(tmp_path / "absent.json")


def test_canonical_hash_does_not_depend_on_key_order() -> None:
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json(json.loads('{"b": [1, 2], "a": 1}'))
    assert sha256_json({"a": [1, 2]}) != sha256_json({"a": [2, 1]})


ODD_JSON = [b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 5000, b'{"a": "\xff"}', b"{"]


@pytest.mark.parametrize("content", ODD_JSON)
def test_whatever_is_wrong_with_a_file_of_ours_is_one_error(tmp_path: Path, content: bytes) -> None:
    """Brackets deeper than Python follows, longer numbers than it reads, bytes that are no text."""
    path = tmp_path / "alive.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"alive\.json: need JSON, got a damaged file"):
        read_json(path)
    with pytest.raises(ArtifactError, match=r"alive\.json"):
        read_jsonl(path)
    assert heartbeat.read(path) == {}


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_an_object_with_a_number_that_json_has_not_does_not_fit_its_seal(odd: float) -> None:
    assert not fits_its_seal({**sealed({"seconds": 1.0}), "seconds": odd})


def test_a_link_is_another_one_at_once_and_an_unfinished_one_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no time is there none; a disk that takes no more leaves a name that the next start removes."""
    one, other, link = tmp_path / "one", tmp_path / "other", tmp_path / "run" / "model"
    for folder in (one, other, link.parent):
        folder.mkdir()
    link_to(link, one)
    assert os.readlink(link) == "../one"
    seen: list[str] = []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        seen.append(os.readlink(link))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    link_to(link, other)
    assert seen == ["../one"] and os.readlink(link) == "../other"

    def full(*names: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        link_to(link, one)
    assert os.readlink(link) == "../other" and list(link.parent.iterdir()) == [link]
    # of a process that is gone: nobody could remove it
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = link.with_name(part_of(link).name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    left.symlink_to("../one")
    assert sweep_parts(link.parent) == [left] and list(link.parent.iterdir()) == [link]
