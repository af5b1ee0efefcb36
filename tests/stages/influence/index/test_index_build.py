"""Writing an index: resuming, other recipes, a full disk, verification. Synthetic rows in place of a model."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rapidun.base.errors import ArtifactError, MachineError
from rapidun.base.files import read_json, sha256_file
from rapidun.base.locks import Lease
from rapidun.stages.influence.index.manifest import open_manifest
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.index.verify import drop_damaged, verify_index
from rapidun.stages.influence.index.writer import build_shards, write_note

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("index_rows", HERE / "index_rows.py")
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

SIZES = {"num_rows": 23, "k": 32, "shard_rows": 5}


@pytest.fixture
def index(tmp_path) -> Path:
    """23 rows in shards of 5: the last has 3."""
    made.build_synthetic(tmp_path / "index", **SIZES)
    return tmp_path / "index"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _all_rows(folder: Path, max_rows: int = 4) -> np.ndarray:
    return np.concatenate([b.rows * b.scales[:, None] for b in Index(folder).blocks(max_rows=max_rows)])


def test_every_row_comes_back_in_order(index):
    found = Index(index)
    np.testing.assert_allclose(_all_rows(index), made.row_vectors(0, 23, k=32), atol=0.02)
    assert list(found.all_ids()) == [f"row{row}" for row in range(23)]
    assert found.ids_of({22, 3, 4}) == {3: "row3", 4: "row4", 22: "row22"}
    assert [b.first_row for b in found.blocks(max_rows=3)] == [0, 3, 5, 8, 10, 13, 15, 18, 20]
    norms = np.concatenate([b.norms.copy() for b in found.blocks(max_rows=5)])
    np.testing.assert_allclose(norms, np.linalg.norm(made.row_vectors(0, 23, k=32), axis=1), rtol=1e-6)


def test_nothing_but_shards_and_manifest_is_left(index):
    shards = [f"shard-0000{shard}.{kind}" for shard in range(5) for kind in ("ids.jsonl", "json", "safetensors")]
    assert sorted(_bytes(index)) == sorted(["manifest.json", *shards])


def test_ids_may_be_any_text(tmp_path):
    names = ["a\u2028b", 'c "d"', "e\nf", "ü", ""]
    manifest = made.synthetic(tmp_path / "index", num_rows=5, k=8, shard_rows=5)
    build_shards(manifest, lambda first, stop: made.make_rows(first, stop, k=8)._replace(ids=names))
    assert list(Index(tmp_path / "index").all_ids()) == names
    assert verify_index(tmp_path / "index").faults == []


def test_verify_counts(index):
    assert verify_index(index) == (23, 5, 0, [])


@pytest.mark.parametrize("max_rows", [1, 3, 5, 100])
def test_block_size_does_not_matter(index, max_rows):
    blocks = Index(index).blocks(max_rows=max_rows)
    found = np.concatenate([b.rows * b.scales[:, None] for b in blocks])
    np.testing.assert_array_equal(found, _all_rows(index))


def test_going_on_makes_only_what_is_missing(index, tmp_path):
    whole = _bytes(index)
    # a note without rows, rows without a note, and half a file of a worker that was killed
    for name in ("shard-00001.json", "shard-00003.json", "shard-00003.safetensors"):
        (index / name).unlink()
    (index / "shard-00003.safetensors.1234abcd.part").write_bytes(b"half")
    asked = []
    manifest = made.synthetic(index, **SIZES)

    def rows(first, stop):
        asked.append((first, stop))
        return made.make_rows(first, stop, k=32)

    assert build_shards(manifest, rows) == 2
    assert sorted(asked) == [(5, 10), (15, 20)]
    assert _bytes(index) == whole
    assert build_shards(manifest, rows) == 0
    assert len(asked) == 2


def test_an_unfinished_index_is_refused(index):
    (index / "shard-00002.json").unlink()
    with pytest.raises(
        ArtifactError, match=r"need all 5 shards, got 4 .*shard-00002\). Run the same rapidun index build"
    ):
        Index(index)
    assert verify_index(index).num_missing == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 16}, "k 32 where 16 is asked for"),
        ({"num_rows": 24}, "num_rows 23 where 24"),
        ({"dtype": "fp16"}, "dtype int8 where fp16"),
        ({"model": "b" * 64}, r"model None where bbbbbbbbbbbb\.\.\. is asked for"),
    ],
)
def test_another_recipe_is_refused_and_nothing_changes(index, change, message):
    before = _bytes(index)
    with pytest.raises(ArtifactError, match=message) as caught:
        made.synthetic(index, **SIZES | change)
    assert "\n" not in str(caught.value)
    assert _bytes(index) == before


def test_a_shard_of_another_index_is_refused(index, tmp_path):
    made.synthetic(tmp_path / "other", **SIZES, model="b")
    other = made.synthetic(tmp_path / "other", **SIZES, model="b")
    build_shards(other, lambda first, stop: made.make_rows(first, stop, k=32))
    for kind in ("ids.jsonl", "json", "safetensors"):
        shutil.copy(tmp_path / "other" / f"shard-00001.{kind}", index)
    with pytest.raises(ArtifactError, match=r"shard-00001.json: need a shard of the index"):
        list(Index(index).blocks(max_rows=5))
    assert ["need a shard of the index" in fault for fault in verify_index(index).faults] == [True]


def test_a_flipped_byte_is_found_while_streaming_and_by_verify(index):
    """One bit of any part of a shard: header, rows, scales, norms, sums."""
    path = index / "shard-00001.safetensors"
    whole = path.read_bytes()
    for place in [0, 9, 300, 4096, 4096 + 77, 4096 + 5 * 32 - 1, *range(4096 + 5 * 32, len(whole), 7)]:
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=r"shard-00001.safetensors: need .* got damaged"):
            list(Index(index).blocks(max_rows=2))
        (fault,) = verify_index(index).faults
        assert "shard-00001.safetensors: need SHA-256" in fault
        assert "Delete the three files of this shard and run the same rapidun index build again" in fault


@pytest.mark.parametrize("ending", ["safetensors", "ids.jsonl", "json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "swap"])
def test_a_build_makes_damaged_shards_anew_and_names_the_file(index, ending, damage):
    whole = _bytes(index)
    path = index / f"shard-00001.{ending}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    other = (index / f"shard-00002.{ending}").read_bytes()
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-40]), "swap": other}[damage])
    said: list[str] = []
    drop_damaged(open_manifest(index), tell=said.append)
    assert len(said) == 1 and path.name in said[0] and said[0].endswith("The shard is made anew")
    made.build_synthetic(index, **SIZES)
    assert _bytes(index) == whole
    drop_damaged(open_manifest(index), tell=said.append)
    assert len(said) == 1


def test_what_the_message_says_mends_it(index):
    whole = _bytes(index)
    path = index / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for kind in ("json", "safetensors"):
        (index / f"shard-00001.{kind}").unlink()
    (index / "shard-00001.ids.jsonl").unlink()
    made.build_synthetic(index, **SIZES)
    assert _bytes(index) == whole


@pytest.mark.parametrize("size", [0, 5, 4100, -1])
def test_a_truncated_shard_is_refused(index, size):
    path = index / "shard-00004.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        ArtifactError, match=r"shard-00004.safetensors: need [\d,]+ bytes, got [\d,]+: the shard was cut"
    ):
        list(Index(index).blocks(max_rows=5))
    assert len(verify_index(index).faults) == 1


def test_missing_rows_and_damaged_notes_are_refused(index):
    (index / "shard-00000.safetensors").unlink()
    note = index / "shard-00002.json"
    note.write_text(note.read_text().replace('"num_rows": 5', '"num_rows": 4'))
    (index / "shard-00003.json").write_text("{")
    ids = index / "shard-00004.ids.jsonl"
    ids.write_text(ids.read_text().replace("row21", "row20"))
    (index / "shard-00001.ids.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"shard-00004.ids.jsonl: need the ids as written"):
        Index(index).ids_of({22})
    with pytest.raises(ArtifactError, match=r"shard-00000.safetensors: need the rows of a finished shard, got no file"):
        list(Index(index).blocks(max_rows=5))
    faults = verify_index(index).faults
    assert len(faults) == 5
    assert "shard-00001.ids.jsonl: need the ids of a finished shard, got no file" in faults[1]
    assert "shard-00002.json: need a note that fits its own checksum" in faults[2]
    assert "shard-00003.json: need JSON" in faults[3]
    assert "shard-00004.ids.jsonl: need the ids as written" in faults[4]


def test_a_row_that_is_there_twice_is_found(index):
    note = read_json(index / "shard-00002.json")
    del note["check"]
    ids = index / "shard-00002.ids.jsonl"
    ids.write_text(ids.read_text().replace("row11", "row3"))
    note["ids_sha256"] = sha256_file(ids)
    write_note(index / "shard-00002.json", note)
    (fault,) = verify_index(index).faults
    assert "need every row once, got 1 ids again" in fault


def test_a_damaged_manifest_is_refused(index):
    path = index / "manifest.json"
    path.write_text(path.read_text().replace('"num_rows": 23', '"num_rows": 28'))
    with pytest.raises(ArtifactError, match="need a manifest that fits its own fingerprint"):
        verify_index(index)
    with pytest.raises(ArtifactError, match="need a manifest that fits its own fingerprint"):
        made.synthetic(index, **SIZES)


def test_no_index_is_said_to_be_none(tmp_path):
    with pytest.raises(ArtifactError, match=r"need an index .* got none. Make it: rapidun index build"):
        Index(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="need a folder, got none"):
        made.synthetic(tmp_path / "file", **SIZES)


LIMITED = """
import importlib.util, resource, sys
from pathlib import Path
from rapidun.base.errors import MachineError
spec = importlib.util.spec_from_file_location("index_rows", sys.argv[1])
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    made.build_synthetic(Path(sys.argv[2]), num_rows=23, k=32, shard_rows=5)
except MachineError as error:
    print(error)
    sys.exit(2)
"""


# the manifest; the rows of the first shard; its note
@pytest.mark.parametrize("limit", [100, 4200, 4500])
def test_a_full_disk_gives_one_message_and_leaves_nothing_half_written(tmp_path, index, limit):
    """A limit on the size of files stands for the disk: writing fails in the middle of a file in the same way."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, str(HERE / "index_rows.py"), str(out), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if limit == 4500:
        # 4,096 + 5 * 32 + 5 * 20 bytes a shard: all of it fits
        assert (done.returncode, done.stdout) == (0, "")
    else:
        assert done.returncode == 2, done.stderr
        assert re.search(rf"need room for [\d,]+ bytes in {out}/.*, got a limit of [\d,]+ bytes a file", done.stdout)
        assert len(done.stdout.splitlines()) == 1
        assert [path.name for path in out.iterdir()] == ([] if limit == 100 else ["manifest.json"])
        made.build_synthetic(out, **SIZES)
    assert _bytes(out) == _bytes(index)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small tmpfs needs root")
def test_a_full_filesystem_likewise(tmp_path):
    """60 rows of 32 numbers take 12 shards of 4 KB and more; 40 KB hold a few."""
    out = tmp_path / "small"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(out)], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(
            MachineError,
            match=r"need room for 4,\d\d\d bytes in .*shard-.*, got 0 bytes free \(No space left on device\)",
        ):
            made.build_synthetic(out / "index", num_rows=60, k=32, shard_rows=5)
        assert not list(out.glob("index/*.part"))
        found = verify_index(out / "index")
        assert found.faults == []
        assert 0 < found.num_missing < 12
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_a_worker_waits_for_the_shard_that_another_holds(tmp_path):
    """It comes back to it, and says who is waited for only when that has taken a second."""
    manifest = made.synthetic(tmp_path / "index", **SIZES)
    lease = Lease(manifest.folder / "shard-00002.lease")
    assert lease.try_acquire()
    asked = []

    def rows(first, stop):
        asked.append(first)
        if len(asked) == 4:
            # all others are made: the holder gives up
            lease.release()
        return made.make_rows(first, stop, k=32)

    assert build_shards(manifest, rows) == 5
    assert asked[-1] == 10
    assert verify_index(manifest.folder) == (23, 5, 0, [])


def test_rows_of_the_wrong_shape_are_a_bug(tmp_path):
    manifest = made.synthetic(tmp_path / "index", **SIZES)
    with pytest.raises(ValueError, match=r"need 5 rows of 32|need 3 rows of 32"):
        build_shards(manifest, lambda first, stop: made.make_rows(first, stop, k=31))
    assert not list(manifest.folder.glob("shard*"))


def test_the_manifest_names_no_place(index):
    assert str(index.parent) not in json.dumps(read_json(index / "manifest.json"))
