import json
from pathlib import Path

import pytest

from rapidun.base.errors import DataError
from rapidun.stages.weights_file import read_weights, write_weights


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    weights = [0.1 + 0.2, 1 / 3, 3.0]
    write_weights(tmp_path / "w.jsonl", weights, ids=["a", "b", "c"])
    first = json.loads((tmp_path / "w.jsonl").read_text().splitlines()[0])
    assert first == {"index": 0, "id": "a", "weight": 0.1 + 0.2}
    assert read_weights(tmp_path / "w.jsonl", ["a", "b", "c"]) == weights


def test_ids_win_over_the_order_of_lines_and_over_indices(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.jsonl", [1.0, 2.0, 3.0], ids=["a", "b", "c"])
    assert read_weights(tmp_path / "w.jsonl", ["c", "a", "b"]) == [3.0, 1.0, 2.0]


def test_without_ids_the_index_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "w.jsonl", {"index": 1, "weight": 2}, "", {"index": 0, "id": None, "weight": 0})
    assert read_weights(path, ["a", "b"]) == [0.0, 2.0]
    write_weights(tmp_path / "n.jsonl", [1.5, 0.5], ids=None)
    assert read_weights(tmp_path / "n.jsonl", ["a", "b"]) == [1.5, 0.5]


def test_a_number_may_be_an_id(tmp_path: Path) -> None:
    assert read_weights(write(tmp_path / "w.jsonl", {"id": 7, "weight": 1.0}), ["7"]) == [1.0]


GOOD = {"index": 0, "id": "a", "weight": 1.0}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"id": "b", "weight": -0.1}, "weight: need a finite number of at least 0, got -0.1"),
        ('{"id": "b", "weight": NaN}', "got nan"),
        ('{"id": "b", "weight": Infinity}', "got inf"),
        ('{"id": "b", "weight": 1e999}', "got inf"),
        ({"id": "b", "weight": 1e308}, "weight: need a number of at most 1e+09, got 1e+308"),
        ({"id": "b", "weight": 10**400}, "weight: need a finite number"),
        ({"id": "b", "weight": "1.0"}, "weight: need a number, got '1.0'"),
        ({"id": "b", "weight": True}, "need a number, got True"),
        ({"id": "b", "weight": None}, "need a number, got None"),
        ({"id": "b"}, "without a weight"),
        ('{"id": "b", "weight": 1.0, "weight": 2.0}', "need every key once, got 'weight' again"),
        ({"weight": 1.0}, "neither id nor index"),
        ({"id": "x", "weight": 1.0}, "need the id of one of the 2 rows, got 'x'"),
        ({"id": ["b"], "weight": 1.0}, "id: need a string"),
        ({"id": "a", "weight": 2.0}, "need every row once, got 'a' again"),
        ({"index": 0, "weight": 2.0}, "need every row once, got 'a' again"),
        ({"index": 2, "weight": 2.0}, "need an index below 2, the number of rows, got 2"),
        ({"index": -1, "weight": 2.0}, "need a whole number from 0, got -1"),
        ({"index": 1.0, "weight": 2.0}, "need a whole number from 0, got 1.0"),
        ({"index": True, "weight": 2.0}, "need a whole number from 0, got True"),
        ("{broken", "not JSON"),
        ("[1, 2]", "got [1, 2]"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, second: object, message: str) -> None:
    path = write(tmp_path / "w.jsonl", GOOD, second)
    with pytest.raises(DataError) as error:
        read_weights(path, ["a", "b"])
    assert f"{path}:2: " in str(error.value)
    assert message in str(error.value)


def test_rows_without_a_weight_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "w.jsonl", GOOD, {"id": "c", "weight": 1.0})
    with pytest.raises(DataError, match=r"w\.jsonl:2: .* 'b' \(index 1\)"):
        read_weights(path, ["a", "b", "c"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_weights(tmp_path / "none.jsonl", ["a"])
    with pytest.raises(DataError, match="readable"):
        read_weights(tmp_path, ["a"])
    with pytest.raises(DataError, match="empty file"):
        read_weights(write(tmp_path / "empty.jsonl"), ["a"])
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xff", "weight": 1}')
    with pytest.raises(DataError, match="UTF-8"):
        read_weights(tmp_path / "latin.jsonl", ["a"])


def test_rows_that_share_an_id_cannot_be_matched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' twice"):
        read_weights(write(tmp_path / "w.jsonl", GOOD), ["a", "a"])


def test_an_index_that_is_another_row_than_the_id_is_said(tmp_path: Path) -> None:
    swapped = [{"index": 0, "id": "b", "weight": 1.0}, {"index": 1, "id": "a", "weight": 2.0}]
    path = write(tmp_path / "w.jsonl", *swapped, {"index": 2, "id": "c", "weight": 3.0}, {"id": "d", "weight": 4.0})
    warnings: list[str] = []
    assert read_weights(path, ["a", "b", "c", "d"], warnings=warnings) == [2.0, 1.0, 3.0, 4.0]
    (line,) = warnings
    assert "2 of 4 lines have an index" in line and f"{path}:1: index 0, but id 'b' is row 1" in line
    warnings.clear()
    write_weights(path, [1.0, 2.0], ids=["a", "b"])
    read_weights(path, ["a", "b"], warnings=warnings)
    assert warnings == []
