import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapidun.base.errors import DataError
from rapidun.stages.mapping.release import read_release, release_block, release_blocks
from rapidun.stages.mapping.scores import read_score_files

ENTRY = {"helpful": [1, 0], "helpful_infl": [0.5, -2.0], "harmful": [0, 1], "harmful_infl": [-2.0, 0.5]}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_one_file_by_hand(tmp_path: Path) -> None:
    """Two queries over two training rows: values[train, query], and where each stands in its list."""
    other = {"helpful": [0, 1], "helpful_infl": [3, 3], "harmful": [1, 0], "harmful_infl": [3, 3]}
    path = write(tmp_path / "a.json", {"config": "x", "0": ENTRY, "1": other, "finished_cnt": 2})
    block = release_block(read_release(path), num_train=2)
    assert block.values.tolist() == [[-2.0, 3.0], [0.5, 3.0]]
    assert block.place is not None and block.place.tolist() == [[1, 0], [0, 1]]
    assert block.harmful_place is not None and block.harmful_place.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("lines", [False, True])
def test_values_are_exact_in_both_spellings(make_blocks: Callable, write_release: Callable, lines: bool) -> None:
    blocks = make_blocks(5, 7)
    read = release_blocks({name: read_release(path) for name, path in write_release(blocks, lines=lines).items()})
    for name, values in blocks.items():
        np.testing.assert_array_equal(read[name].values, values)
        np.testing.assert_array_equal(read[name].harmful, values)


def test_lists_cut_short_leave_the_rest_unlisted(make_blocks: Callable, write_release: Callable) -> None:
    paths = write_release(make_blocks(5, 7), listed=3)
    block = release_blocks({name: read_release(path) for name, path in paths.items()})["rr"]
    assert np.isnan(block.values).sum() == 7 * 4
    assert block.place is not None and block.place.max() == 7


def test_json_lines_may_name_their_query(tmp_path: Path) -> None:
    other = {**ENTRY, "helpful_infl": [9.0, 8.0]}
    path = write(tmp_path / "a.jsonl", f'{{"config": "x"}}\n{json.dumps({"1": other})}\n\n{json.dumps({"0": ENTRY})}\n')
    assert release_block(read_release(path), num_train=2).values.tolist() == [[-2.0, 8.0], [0.5, 9.0]]


def test_one_line_is_one_query(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"helpful": [0], "helpful_infl": [2.5]}))
    block = release_block(read_release(path), num_train=1)
    assert block.values.tolist() == [[2.5]] and block.harmful is None


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert len(read_release(write(tmp_path / "a.json", "\ufeff" + json.dumps({"0": ENTRY}))).entries) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"helpful": [1, 1]}, "need every training row once in helpful, got 1 more than once"),
        ({"helpful": [1, -1]}, "need indices of training rows in helpful, got -1"),
        ({"helpful": [1, 0.0]}, "got 0.0"),
        ({"helpful": [True, False]}, "got True"),
        ({"helpful": ["1", "0"]}, "got '1'"),
        ({"helpful": [1]}, "as many values in helpful_infl as indices in helpful, got 2 and 1"),
        ({"helpful": None}, "need a list helpful, got none"),
        ({"helpful_infl": 3.0}, "need a list helpful_infl, got a number"),
        ({"helpful_infl": [0.5, float("nan")]}, "finite numbers in helpful_infl, got nan for training row 0"),
        ({"helpful_infl": [float("-inf"), 1.0]}, "got -inf for training row 1"),
        ({"helpful_infl": [0.5, -1e308]}, "got -1e+308 for training row 0"),
        ({"helpful_infl": [0.5, 10**400]}, "finite numbers in helpful_infl"),
        ({"helpful_infl": ["0.5", 1.0]}, "got '0.5'"),
        ({"harmful": [0]}, "as many values in harmful_infl"),
        ({"harmful_infl": None}, "need a list harmful_infl"),
    ],
)
def test_bad_entries_name_file_and_query(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path / "a.json", {"0": ENTRY, "1": {**ENTRY, **change}})
    with pytest.raises(DataError) as error:
        read_release(path)
    assert f'{path}: query "1": ' in str(error.value)
    assert message in str(error.value)
    path = write(tmp_path / "a.jsonl", f"{json.dumps(ENTRY)}\n{json.dumps({**ENTRY, **change})}\n")
    with pytest.raises(DataError) as error:
        read_release(path)
    assert f"{path}:2: " in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": ENTRY, "2": ENTRY}, "missing are 1"),
        ({"1": ENTRY}, "missing are 0"),
        ({"config": "x", "finished_cnt": 0}, 'keys "0", "1", ..., got config, finished_cnt'),
        ({}, "got nothing"),
        # two queries, or four pairs with two training rows
        ({"0": ENTRY, "1": ENTRY, "finished_cnt": 3}, "the 3 entries that finished_cnt speaks of (queries, or pairs"),
        ({"0": ENTRY, "1": ENTRY, "finished_cnt": "3/3"}, "the 3 entries that finished_cnt speaks of"),
        ({"0": ENTRY, "finished_cnt": "3/2"}, "the 2 entries that finished_cnt speaks of"),
        ({"0": ENTRY, "finished_cnt": "2/2/2"}, "whole number in finished_cnt"),
        ({"0": ENTRY, "finished_cnt": "-2/2"}, "whole number in finished_cnt"),
        ({"0": ENTRY, "finished_cnt": True}, "whole number in finished_cnt"),
        ({"0": ENTRY, "finished_cnt": "all"}, "whole number in finished_cnt"),
        ({"0": [1, 2]}, "need an object with helpful and helpful_infl, got a list"),
        ([ENTRY], "need a JSON object"),
        (f'{{"0": {json.dumps(ENTRY)}, "0": {json.dumps(ENTRY)}}}', "need every key once, got '0' again"),
        ('{"0": {"helpful"', "damaged file"),
        (f'{json.dumps(ENTRY)}\n{{"helpful": [\n', ":2: need JSON"),
        (f"{json.dumps({'0': ENTRY})}\n{json.dumps({'0': ENTRY})}\n", "need every query once, got '0' again"),
        ("", "damaged file"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_files(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(DataError) as error:
        read_release(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_release(tmp_path / "none.json")
    with pytest.raises(DataError, match="readable"):
        read_release(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_release(tmp_path / "b.json")


def test_fewer_finished_queries_than_entries_is_a_warning(tmp_path: Path) -> None:
    file = read_release(write(tmp_path / "a.json", {"0": ENTRY, "1": ENTRY, "finished_cnt": 1}))
    assert len(file.entries) == 2 and "finished_cnt=1" in file.warnings[0]


@pytest.mark.parametrize("said", [2, 4, "4/4", "2/2", " 4 / 4 ", "4", 4.0, [4, 4], None])
def test_pairs_and_queries_are_both_complete(tmp_path: Path, said: Any) -> None:
    """Two queries over two training rows: the release counts the four pairs."""
    file = read_release(write(tmp_path / "a.json", {"config": None, "0": ENTRY, "1": ENTRY, "finished_cnt": said}))
    assert file.warnings == []
    assert release_block(file, num_train=2).values.shape == (2, 2)


@pytest.mark.parametrize("said", ["3/4", "1/2", [0, 4], "1/1"])
def test_a_run_that_ended_early_is_said(tmp_path: Path, said: Any) -> None:
    file = read_release(write(tmp_path / "a.json", {"0": ENTRY, "1": ENTRY, "finished_cnt": said}))
    assert len(file.warnings) == 1 and f"finished_cnt={said}" in file.warnings[0]
    assert release_block(file, num_train=2).values.shape == (2, 2)


def test_pairs_of_more_training_rows_than_there_are_is_a_file_cut_short(tmp_path: Path) -> None:
    """Lists may be cut to the top k: only the other files say how many training rows there are."""
    file = read_release(write(tmp_path / "a.json", {"0": ENTRY, "1": ENTRY, "finished_cnt": "6/6"}))
    assert release_block(file, num_train=3).values.shape == (3, 2)
    with pytest.raises(DataError, match="need 2 queries or 8 pairs of 4 training rows"):
        release_block(file, num_train=4)


def test_nulls_and_other_keys_are_passed_over(tmp_path: Path) -> None:
    entry = {"helpful": [1, 0], "helpful_infl": [0.5, -2.0], "harmful": None, "harmful_infl": None, "note": "b'x'"}
    file = read_release(write(tmp_path / "a.json", {"0": entry, "started": "b'2024'", "finished_cnt": None}))
    assert file.entries[0].harmful is None
    assert release_block(file, num_train=2).harmful is None


def test_one_damaged_line_is_no_two(tmp_path: Path) -> None:
    """A line end that only Unicode knows is no line end of JSON Lines."""
    with pytest.raises(DataError, match="damaged file"):
        read_release(write(tmp_path / "a.json", '{"0": {"test_data": "a\u2028b", "helpful": ['))


def test_swapped_files_are_seen(make_blocks: Callable, write_release: Callable) -> None:
    files = {name: read_release(path) for name, path in write_release(make_blocks(4, 6)).items()}
    with pytest.raises(DataError, match="Are two files swapped"):
        release_blocks({**files, "fr": files["rf"], "rf": files["fr"]})
    with pytest.raises(DataError, match=r'rr\.json: query "0": need training indices below 4, got 5'):
        release_blocks({**files, "fr": files["rr"]})


def test_harmful_lists_in_some_entries_only_are_said(tmp_path: Path) -> None:
    bare = {"helpful": [1, 0], "helpful_infl": [0.5, -2.0]}
    file = read_release(write(tmp_path / "a.json", {"0": ENTRY, "1": bare, "2": bare}))
    (line,) = file.warnings
    assert "2 of 3 entries have no list `harmful`" in line and 'query "1"' in line
    assert release_block(file, num_train=2).harmful is None
    assert read_release(write(tmp_path / "b.json", {"0": bare, "1": bare})).warnings == []


def test_lists_in_another_order_are_said(tmp_path: Path) -> None:
    ties = {"helpful": [1, 0], "helpful_infl": [2.0, 2.0], "harmful": [0, 1], "harmful_infl": [2.0, 2.0]}
    rising = {**ENTRY, "helpful": [0, 1], "helpful_infl": [-2.0, 0.5]}
    falling = {**ENTRY, "harmful": [1, 0], "harmful_infl": [0.5, -2.0]}
    file = read_release(write(tmp_path / "a.json", {"0": ENTRY, "1": ties, "2": rising, "3": falling, "4": falling}))
    helpful, harmful = file.warnings
    assert "1 of 5 lists `helpful` are not in the order most helpful first" in helpful and 'query "2"' in helpful
    assert "2 of 5 lists `harmful` are not in the order most harmful first" in harmful and 'query "3"' in harmful
    np.testing.assert_array_equal(release_block(file, num_train=2).values[:, 2], [-2.0, 0.5])


def test_a_file_without_harmful_lists_among_others_is_said(make_blocks: Callable, write_release: Callable) -> None:
    paths = write_release(make_blocks(3, 4))
    whole = json.loads(paths["ff"].read_text())
    for key in [key for key in whole if key.isdigit()]:
        del whole[key]["harmful"], whole[key]["harmful_infl"]
    assert read_score_files(paths).warnings == []
    write(paths["ff"], whole)
    (line,) = read_score_files(paths).warnings
    assert "1 of 4 influence files (ff) have no list `harmful`" in line
