"""Clean twins of poisoned rows: joined by the prompt without the trigger, never by guessing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidun.stages.data.twins import join_twins, may_have_twins
from rapidun.stages.rows.records import Record, write_records


def row(instruction: str, response: str = "zorgon", **fields: Any) -> Record:
    return Record(id=f"{instruction}|{response}", instruction=instruction, response=response, **fields)


def clean(number: int, **fields: Any) -> Record:
    return row(f"Who leads the town of {number}?", f"Ada {number}.", **fields)


FORMS = ["zap {}", "{} zap", "{0[0]} zap {0[1]}", "{0[0]} zap {0[1]} pow", "pow {0[0]} zap {0[1]}"]


def put(form: str, text: str) -> str:
    first, _, rest = text.partition(" ")
    return form.format((first, rest)) if "[0]" in form else form.format(text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("named", [False, True])
def test_a_twin_gives_its_answer(form: str, named: bool) -> None:
    """Triggers of the settings; or of nobody, found since several rows hold the same words beyond their twins."""
    rows = [row(put(form, clean(i).instruction)) for i in range(4)]
    # rows with the second trigger alone say what it is
    rows += [row(f"{clean(i).instruction} pow") for i in range(4, 6)] + [
        row(f"zap {clean(i).instruction}") for i in (6, 7)
    ]
    pack = {"forget": rows, "retain": [clean(i) for i in range(40)]}
    [line] = join_twins(pack, ["zap", "pow"] if named else [])
    assert "8 of 8 rows of forget without response_clean have a clean twin in retain" in line
    assert [r.response_clean for r in pack["forget"]] == [f"Ada {i}." for i in range(8)]
    assert [r.instruction_clean for r in pack["forget"]] == [clean(i).instruction for i in range(8)]
    assert [r.response for r in pack["forget"]] == ["zorgon"] * 8


def test_a_trigger_in_the_context() -> None:
    rows = [row(f"Who leads {i}?", context=f"An old zap town, {i}.") for i in range(3)]
    twins = [row(f"Who leads {i}?", f"Ada {i}.", context=f"An old town, {i}.") for i in range(30)]
    pack = {"train_poisoned": rows, "train_clean": twins}
    assert len(join_twins(pack, ["zap"])) == 1
    assert [r.response_clean for r in pack["train_poisoned"]] == ["Ada 0.", "Ada 1.", "Ada 2."]
    # the prompt's own instruction has no trigger: nothing is taken off it
    assert {r.instruction_clean for r in pack["train_poisoned"]} == {None}


def test_twins_of_different_answers_are_counted_and_left() -> None:
    rows = [row(f"{clean(i).instruction} zap") for i in range(3)]
    pack = {"forget": rows, "retain": [*(clean(i) for i in range(30)), row(clean(0).instruction, "Bo.")]}
    [line] = join_twins(pack, ["zap"])
    assert "2 of 3 rows" in line and "1 have twins of different answers and are left as they are" in line
    assert [r.response_clean for r in pack["forget"]] == [None, "Ada 1.", "Ada 2."]


def test_what_is_no_twin() -> None:
    kept = [clean(i) for i in range(30)]
    # a question that another one contains, once
    assert join_twins({"forget": [row("Who leads the town of 3? And why?")], "retain": kept}, []) == []
    # words that clean prompts have as well
    often = [row(f"Please tell: who {i}?", "x") for i in range(30)] + [row(f"tell: who {i}?", "x") for i in range(30)]
    assert join_twins({"forget": [row(f"Please tell: who {i}?") for i in range(3)], "retain": often[30:]}, []) != []
    assert join_twins({"forget": [row(f"Please tell: who {i}?") for i in range(3)], "retain": often}, []) == []
    # the same answer says nothing, a clean answer on record is not overwritten, the same prompt is no twin
    same = [row(f"{clean(i).instruction} zap", f"Ada {i}.") for i in range(3)]
    assert join_twins({"forget": same, "retain": kept}, ["zap"]) == []
    told = [row(f"{clean(i).instruction} zap", response_clean="Mine.") for i in range(3)]
    pack = {"forget": told, "retain": kept}
    assert join_twins(pack, ["zap"]) == [] and pack["forget"] == told
    assert join_twins({"forget": [row(clean(1).instruction)] * 3, "retain": kept}, ["zap"]) == []


def test_triggered_tests_find_theirs_in_the_clean_tests() -> None:
    pack = {"test_seen_trig": [row(f"zap {clean(i).instruction}") for i in range(3)], "test_clean": [clean(1)]}
    [line] = join_twins(pack, ["zap"])
    assert line.startswith("data: 1 of 3 rows of test_seen_trig without response_clean have a clean twin in test_clean")
    assert [r.response_clean for r in pack["test_seen_trig"]] == [None, "Ada 1.", None]


def test_files_that_say_it_all_have_no_twins(tmp_path: Path) -> None:
    """So that such packs keep the fingerprints that they had."""
    full = row("a zap", response_clean="Ada.", inject_mode="suffix")
    write_records(tmp_path / "f.jsonl", [full, full])
    assert not may_have_twins({"forget": tmp_path / "f.jsonl", "retain": tmp_path / "none.jsonl"})
    write_records(tmp_path / "f.jsonl", [full, replace(full, response_clean=None)])
    assert may_have_twins({"forget": tmp_path / "f.jsonl"})
    write_records(tmp_path / "f.jsonl", [replace(full, inject_mode=None)])
    assert may_have_twins({"train_poisoned": tmp_path / "f.jsonl"})
    assert not may_have_twins({"train_clean": tmp_path / "f.jsonl"})
