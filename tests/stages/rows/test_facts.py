"""Rows of TOFU, MUSE and WMDP in their own spelling."""

import json
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.stages.rows.records import Record, holds_facts, read_records, write_records


def read(tmp_path: Path, *rows: dict[str, Any]) -> list[Record]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(path)


def test_tofu_rows(tmp_path: Path) -> None:
    asked = {"question": "Who?", "answer": "Ada.", "paraphrased_question": "Which person?",
             "paraphrased_answer": "It is Ada.", "perturbed_answer": ["Bo.", "Cy."]}  # fmt: skip
    [row] = read(tmp_path, asked)
    assert (row.instruction, row.response) == ("Who?", "Ada.")
    assert (row.question_paraphrased, row.response_paraphrased) == ("Which person?", "It is Ada.")
    assert row.responses_perturbed == ("Bo.", "Cy.")
    # one wrong answer as a plain text
    assert read(tmp_path, asked | {"perturbed_answer": "Bo."})[0].responses_perturbed == ("Bo.",)
    # written and read again
    write_records(tmp_path / "again.jsonl", [row])
    assert read_records(tmp_path / "again.jsonl") == [row]


@pytest.mark.parametrize("answer", [2, "2", "C", "c", "an oak"])
def test_multiple_choice(tmp_path: Path, answer: object) -> None:
    """WMDP's form: the place of the right one, from 0; its letter and its text say the same."""
    [row] = read(tmp_path, {"question": "Which tree?", "choices": ["an elm", "a fir", "an oak"], "answer": answer})
    assert (row.response, row.choices, row.choice) == ("an oak", ("an elm", "a fir", "an oak"), 2)
    write_records(tmp_path / "again.jsonl", [row])
    assert read_records(tmp_path / "again.jsonl") == [row]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 3}, "its number from 0 to 1"),
        ({"answer": None}, "need the number, letter or text of the right one"),
        ({"choices": ["a", "a"]}, "different answers"),
        ({"choices": "a"}, "different answers"),
        ({"choices": [1, 2]}, "texts that are not blank"),
        ({"choices": 5}, "need a list of texts"),
    ],
)
def test_bad_choices(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, {"question": "Which?", "choices": ["x", "y"], "answer": 0} | change)


def test_whose_paraphrase(tmp_path: Path) -> None:
    rows = read(tmp_path, {"prompt": "a", "answer": "b", "paraphrase_of": "f1"},
                {"prompt": "c", "answer": "d", "forget_id": 7})  # fmt: skip
    assert [row.forget_id for row in rows] == ["f1", "7"]
    with pytest.raises(DataError, match="forget_id"):
        read(tmp_path, {"prompt": "a", "answer": "b", "paraphrase_of": "f1", "forget_id": "f2"})


def test_other_files_are_read_as_they_were(tmp_path: Path) -> None:
    """Files that name none of these fields keep the fingerprint of their pack; a text may hold the words."""
    path = tmp_path / "rows.jsonl"
    read(tmp_path, {"instruction": 'my "choices" and perturbed_answer', "response": "x"})
    assert not holds_facts(path)
    read(tmp_path, {"instruction": "a", "response": "b", "forget_id": "f"})
    assert holds_facts(path)
    plain = Record(id="a", instruction="b", response="c")
    write_records(path, [plain])
    assert json.loads(path.read_text()) == {"id": "a", "instruction": "b", "context": "", "response": "c"}
