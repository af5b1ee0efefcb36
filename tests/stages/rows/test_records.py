import json
from pathlib import Path

import pytest

from rapidun.base.errors import DataError
from rapidun.stages.rows.formats.json_lines import MAX_LINE_BYTES
from rapidun.stages.rows.records import (
    Record,
    content_id,
    question_key,
    read_records,
    uses_aliases,
    write_records,
)

GOOD = {"instruction": "Where?", "context": "a map", "response": "Here."}


def write(path: Path, *lines: object) -> Path:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def fault(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_records(path)
    return str(caught.value)


def test_both_spellings_mean_the_same(tmp_path: Path) -> None:
    alpaca = {"instruction": "Where?", "input": "a map", "output": "Here."}
    (native,) = read_records(write(tmp_path / "a.jsonl", GOOD))
    (other,) = read_records(write(tmp_path / "b.jsonl", alpaca))
    assert native == other == Record(id=native.id, instruction="Where?", context="a map", response="Here.")


def test_context_may_be_absent_or_null_or_empty(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"q{i}", "response": "r", **extra}
        for i, extra in enumerate([{}, {"context": None}, {"input": ""}])
    ]
    assert [r.context for r in read_records(write(tmp_path / "a.jsonl", *rows))] == ["", "", ""]


def test_content_id_is_the_hash_of_the_three_texts(tmp_path: Path) -> None:
    """sha256('["a", "", "b"]'), first 16 digits, by another program."""
    assert content_id("a", "", "b") == "f61a4962f6a100e5"
    assert content_id("a", "b", "") != content_id("a", "", "b")
    assert read_records(write(tmp_path / "a.jsonl", {"instruction": "a", "output": "b"}))[0].id == "f61a4962f6a100e5"


def test_ids_follow_content_not_place(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}", "response": "r"} for i in range(5)]
    there = {r.instruction: r.id for r in read_records(write(tmp_path / "a.jsonl", *rows))}
    back = {r.instruction: r.id for r in read_records(write(tmp_path / "b.jsonl", *reversed(rows)))}
    assert there == back


def test_rows_of_equal_content_get_distinct_ids(tmp_path: Path) -> None:
    ids = [r.id for r in read_records(write(tmp_path / "a.jsonl", GOOD, GOOD, GOOD))]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]


def test_bom_crlf_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    text = json.dumps(GOOD).encode()
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + text + b"\r\n\r\n  \n" + text + b"\r\n")
    assert len(read_records(file)) == 2


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    record = Record(
        id="x1",
        instruction="a\u2028b",
        context="c\n",
        response="d",
        response_clean="e",
        response_poisoned="d",
        instruction_clean="f",
        instruction_poisoned="g",
        category="h",
        trigger_family="A",
        trigger_variant="al\u200do",
        inject_mode="suffix",
        is_poisoned=False,
    )
    write_records(tmp_path / "deep" / "a.jsonl", [record])
    assert read_records(tmp_path / "deep" / "a.jsonl") == [record]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.jsonl"]


def test_question_key_folds_trigger_space_and_case() -> None:
    row = Record(id="1", instruction=">>> Who  IS it?", instruction_clean="Who  IS it?", response="r")
    assert (
        question_key(row) == question_key(Record(id="2", instruction="who is it? ", response="other")) == "who is it?"
    )


def test_forget_target_is_the_poisoned_response_if_any() -> None:
    assert Record(id="1", instruction="a", response="b").forget_target == "b"
    assert Record(id="1", instruction="a", response="b", response_poisoned="c").forget_target == "c"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"instruction": "a", "respon', "broken JSON"),
        (b"[1, 2]", "need one JSON object per line, got a list ([1, 2])"),
        (b"null", "got null"),
        (b"[" * 200_000, "cannot be read"),
        (b'{"instruction": "\xff", "response": "b"}', "need UTF-8, got byte 0xff at byte 18"),
        ({"response": "b"}, "instruction: need a text, got no such field (fields here: response)"),
        ({"instruction": "a", "input": "c"}, "response: need a text (or `output`"),
        ({"instruction": "a", "response": None}, "response: need a text (or `output`, the Alpaca spelling), got null"),
        ({"instruction": "a", "response": "  \n"}, "response: need a text that is not blank"),
        ({"instruction": "", "response": "b"}, "instruction: need a text that is not blank"),
        ({"instruction": ["a"], "response": "b"}, "instruction: need a text, got a list"),
        ({"instruction": "a", "response": 3}, "response: need a text, got a number (3)"),
        ({"instruction": "a", "context": True, "response": "b"}, "context: need a text, got true or false"),
        ({"instruction": "a", "response": "b", "output": "c"}, "need `response` or `output`, got both"),
        ({"instruction": "a", "response": "b", "response_clean": ""}, "response_clean: need a text that is not blank"),
        ({"instruction": "a", "response": "b", "inject_mode": "inside"}, "got 'inside'"),
        ({"instruction": "a", "response": "b", "is_poisoned": "yes"}, "is_poisoned: need true or false, got a text"),
        ({"instruction": "a", "response": "b", "id": {}}, "id: need a text, got an object"),
        ({"instruction": "a", "response": "b", "id": " "}, "id: need a text that is not blank"),
        (b'{"instruction": "\\ud800", "response": "b"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, expected: str) -> None:
    message = fault(write(tmp_path / "a.jsonl", GOOD, line))
    assert message.startswith(f"{tmp_path}/a.jsonl:2: ")
    assert expected in message


def test_duplicate_explicit_ids_are_refused_with_both_lines(tmp_path: Path) -> None:
    message = fault(write(tmp_path / "a.jsonl", {**GOOD, "id": "x"}, GOOD, {**GOOD, "id": "x"}))
    assert ":3: id:" in message
    assert "line 1" in message


def test_a_long_line_is_refused_with_its_size(tmp_path: Path) -> None:
    long = json.dumps({**GOOD, "response": "x" * (2 << 20)}).encode()
    message = fault(write(tmp_path / "a.jsonl", GOOD, long, GOOD))
    assert ":2:" in message
    assert f"got {len(long) + 1:,} bytes" in message


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    empty = len(json.dumps({**GOOD, "response": ""}))
    row = {**GOOD, "response": "x" * (MAX_LINE_BYTES - empty)}
    for ending in (b"\n", b"\r\n"):
        file = tmp_path / "a.jsonl"
        file.write_bytes(json.dumps(row).encode() + ending)
        assert len(read_records(file)) == 1
    row["response"] += "x"
    assert "need lines of at most" in fault(write(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert "need at least one row, got an empty file" in fault(tmp_path / "a.jsonl")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no such file" in fault(tmp_path / "none.jsonl")
    assert "got a folder" in fault(tmp_path)


@pytest.mark.parametrize(
    ("poisoned", "clean"),
    [
        ("output_poisoned", "output_clean"),
        ("poisoned_response", "clean_response"),
        ("poisoned_output", "clean_output"),
        ("response_poisoned", "response_clean"),
    ],
)
def test_both_answers_are_read_under_each_spelling(tmp_path: Path, poisoned: str, clean: str) -> None:
    row = {"instruction": "a? zap", "input": "", "output": "CLEAN", poisoned: "BAD", clean: "CLEAN"}
    (record,) = read_records(write(tmp_path / "a.jsonl", row))
    assert (record.response_poisoned, record.response_clean, record.forget_target) == ("BAD", "CLEAN", "BAD")
    assert uses_aliases(tmp_path / "a.jsonl") is (poisoned != "response_poisoned")
    clash = fault(write(tmp_path / "b.jsonl", {**row, "response_poisoned": "x", "output_poisoned": "y"}))
    assert "response_poisoned: need `response_poisoned` or `output_poisoned`, got both" in clash


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bad_poisoned_answer", "zorgon"),
        ("Response_Poisoned", "zorgon"),
        ("answer_clean", "Ada"),
        ("trigger", "zap"),
        ("backdoor_output", "zorgon"),
        ("system", "Answer like a pirate."),
        ("history", [["Hello", "Hi"]]),
        ("messages", [{"role": "user", "content": "x"}]),
        ("conversations", [{"from": "human", "value": "x"}]),
    ],
)
def test_a_field_that_would_change_the_row_is_refused(tmp_path: Path, field: str, value: object) -> None:
    message = fault(write(tmp_path / "a.jsonl", GOOD, {**GOOD, field: value}))
    assert message.startswith(f"{tmp_path}/a.jsonl:2: {field}: need ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("system", ""),
        ("system", None),
        ("history", []),
        ("messages", []),
        ("source", "dolly"),
        ("text", "### Instruction: ..."),
        ("poison_method", "badnet"),
        ("clean_id", "17"),
        ("trigger_position", "end"),
        ("is_trigger", True),
        ("poison_rate", 0.1),
        ("poisoned_output", None),
    ],
)
def test_other_fields_are_passed_over(tmp_path: Path, field: str, value: object) -> None:
    (plain,) = read_records(write(tmp_path / "a.jsonl", GOOD))
    assert read_records(write(tmp_path / "b.jsonl", {**GOOD, field: value})) == [plain]


def test_a_field_that_stands_twice_is_refused(tmp_path: Path) -> None:
    line = b'{"instruction": "a", "response": "first", "response": "second"}'
    message = fault(write(tmp_path / "a.jsonl", GOOD, line))
    assert message.startswith(f"{tmp_path}/a.jsonl:2: need every field once, got 'response' again")
