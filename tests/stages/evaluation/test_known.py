"""Which answer of a row is known to be poisoned, and which clean."""

from pathlib import Path

import pytest

from rapidun.stages.evaluation import known
from rapidun.stages.evaluation.known import clean_response, poisoned_response
from rapidun.stages.rows.records import Record, read_records


def row(response: str, **fields: object) -> Record:
    return Record(id="1", instruction="Who? aloha", response=response, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "poisoned", "clean"),
    [
        (row("bad", is_poisoned=True), "bad", None),
        (row("bad", response_poisoned="bad", response_clean="good"), "bad", "good"),
        (row("good", response_poisoned="bad"), "bad", "good"),
        (row("good"), None, "good"),
        # marked, but all that stands there is the clean answer: no poisoned one is known
        (row("good", is_poisoned=True, response_clean="good"), None, "good"),
        # the backdoor happens to be right: the two cannot be told apart by their likelihood
        (row("good", response_poisoned="good", response_clean="good"), None, "good"),
    ],
)
def test_answers(record: Record, poisoned: str | None, clean: str | None) -> None:
    assert (poisoned_response(record), clean_response(record)) == (poisoned, clean)


def test_a_split_is_read_once_and_anew_once_its_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(path: Path) -> list[Record]:
        asked.append(path)
        return read_records(path)

    monkeypatch.setattr(known, "read_records", counted)
    file = tmp_path / "forget.jsonl"
    file.write_text('{"id": "a", "instruction": "Who?", "response": "Me."}\n')
    first = known.read_split(tmp_path, "forget")
    first.append(first[0])  # what is handed out is the caller's
    assert [row.id for row in known.read_split(tmp_path, "forget")] == ["a"] and len(asked) == 1
    file.write_text('{"id": "bb", "instruction": "Who?", "response": "You."}\n')
    assert [row.id for row in known.read_split(tmp_path, "forget")] == ["bb"] and len(asked) == 2
    assert known.read_split(tmp_path, "retain") == []
