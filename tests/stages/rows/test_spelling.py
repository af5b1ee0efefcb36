"""What other people call the fields of a row, and rows of turns."""

import json
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.config.data import FieldsConfig, MultiTurn
from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.rows.spelling import Spelling

LAST = MultiTurn.last


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(tmp_path: Path, *rows: object, multi_turn: MultiTurn = MultiTurn.refuse, **fields: str) -> list[Record]:
    spelling = Spelling.of(FieldsConfig(**fields), multi_turn)
    return read_records(write(tmp_path / "a.jsonl", *rows), spelling)


def turns(*texts: str, names: tuple[str, str, str] = ("role", "user", "assistant"), content: str = "content") -> Any:
    return [{names[0]: names[1 + number % 2], content: text} for number, text in enumerate(texts)]


SHAREGPT = ("from", "human", "gpt")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "context": "c", "response": "r"},
        {"instruction": "q", "input": "c", "output": "r"},
        {"prompt": "q", "context": "c", "completion": "r"},
        {"question": "q", "context": "c", "answer": "r"},
        {"prompt": "q", "input": "c", "response": "r", "question": None, "answer": " "},
        {"messages": turns("q", "r"), "context": "c"},
        {"conversations": turns("q", "r", names=SHAREGPT, content="value"), "input": "c"},
        {"prompt": turns("q"), "completion": [{"role": "assistant", "content": "r"}], "context": "c"},
        # a table of turns of both kinds
        {"messages": [{**t, "from": None, "value": None} for t in turns("q", "r")], "context": "c"},
        {
            "messages": [
                {**t, "role": None, "content": None} for t in turns("q", "r", names=SHAREGPT, content="value")
            ],
            "context": "c",
        },
        {"messages": [{"role": "User", "content": [{"type": "text", "text": "q"}]}, *turns("", "r")[1:]], "input": "c"},
    ],
)
def test_every_spelling_is_the_same_row(tmp_path: Path, row: dict[str, object]) -> None:
    [native] = read_records(write(tmp_path / "b.jsonl", {"instruction": "q", "context": "c", "response": "r"}))
    assert read(tmp_path, row) == [native]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "a", "prompt": "b", "response": "r"}, ["instruction: need `instruction` or `prompt`"]),
        (
            {"messages": [{"role": "user", "content": "q", "value": "p"}, *turns("q", "r")[1:]]},
            ["turns of content or value", "one with both"],
        ),
        (
            {"messages": [{"role": "user", "from": "gpt", "content": "q"}, *turns("q", "r")[1:]]},
            ["turns of role or from", "one with both"],
        ),
        (
            {"messages": [turns("q")[0], {"role": "assistant", "content": "r", "weight": 0}]},
            ["an answer that is trained on", "weight 0"],
        ),
        (
            {"question": "a", "output": "r", "answer": "s"},
            ["response: need `output` or `answer`", "data.fields.respon"],
        ),
        ({"prompt": "a", "messages": turns("q", "r")}, ["messages: need", "beside prompt", "data.fields.messages"]),
        ({"messages": turns("q", "r"), "conversations": turns("q", "s")}, ["beside conversations"]),
        ({"messages": turns("q")}, ["end with the assistant's answer", "User"]),
        ({"messages": [{"role": "assistant", "content": "r"}]}, ["a user's turn before"]),
        ({"messages": [*turns("q", "r"), {"role": "assistant", "content": "s"}]}, ["one answer behind"]),
        ({"messages": [{"role": "tool", "content": "x"}, *turns("q", "r")]}, ["'tool'"]),
        ({"messages": [{"role": "user", "content": None}, *turns("q", "r")]}, ["turns of text, got null"]),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["turns of text, got a list"]),
        ({"messages": "user: q"}, ["need a list of turns, got a text"]),
        ({"messages": turns("a", "b", "c", "d")}, ["data.multi_turn=last", "User, Assistant, User, Assistant"]),
        ({"messages": [{"role": "system", "content": "s"}, *turns("q", "r")], "system": "t"}, ["one system prompt"]),
        ({"question": "q", "system_prompt": "s", "response": "r"}, ["data.fields.system"]),
        ({"question": "q", "answer": ["r"]}, ["answer: need a text, got a list"]),
        ({"question": "q", "answer": 3}, ["answer: need a text, got a number"]),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, row: dict[str, object], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, row)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.jsonl'}:1: ")
    assert [word for word in words if word not in message] == []


def test_rows_of_one_fault_are_counted(tmp_path: Path) -> None:
    good, bad = {"messages": turns("q", "r")}, {"messages": turns("a", "b", "c", "d")}
    with pytest.raises(DataError, match=r"a.jsonl:2: .*\(3 of 5 rows are like that\)"):
        read(tmp_path, good, bad, bad, {"messages": turns("q")}, bad)


def test_the_last_answer_with_the_rest_as_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    [row] = read(tmp_path, {"messages": [system, *turns("a", "b", "c", "d")]}, multi_turn=LAST)
    assert row.texts == ("Be brief.\n\nc", "User: a\n\nAssistant: b", "d")
    [row] = read(tmp_path, {"messages": turns("a", "b", "c", "d"), "context": "a map"}, multi_turn=LAST)
    assert row.texts == ("c", "a map\n\nUser: a\n\nAssistant: b", "d")
    # one turn is read as ever
    assert read(tmp_path, {"messages": turns("a", "b")}, multi_turn=LAST)[0].texts == ("a", "", "b")


def test_no_word_of_a_conversation_is_lost(tmp_path: Path) -> None:
    said = [f"word{i}" for i in range(8)]
    middle = [*turns(*said[:2]), {"role": "system", "content": "inside"}, *turns(*said[2:])]
    [row] = read(tmp_path, {"messages": [{"role": "system", "content": "first"}, *middle]}, multi_turn=LAST)
    whole = "\n".join(row.texts)
    assert [word for word in [*said, "first", "inside"] if whole.count(word) != 1] == []


@pytest.mark.parametrize("beside", [{}, {"system": "Be kind."}])
def test_a_system_prompt_stands_in_front(tmp_path: Path, beside: dict[str, str]) -> None:
    head = [] if beside else [{"from": "system", "value": "Be kind."}]
    row = {"conversations": [*head, *turns("q", "r", names=SHAREGPT, content="value")], **beside}
    assert read(tmp_path, row)[0].texts == ("Be kind.\n\nq", "", "r")
    flat = {"question": "q", "system_prompt": "Be kind.", "response": "r"}
    assert read(tmp_path, flat, system="system_prompt")[0].texts == ("Be kind.\n\nq", "", "r")


def test_named_columns_come_first(tmp_path: Path) -> None:
    row = {"q": "a", "prompt": "b", "instruction": "x", "best": "r", "response": "s", "key": 7, "why": "off"}
    [found] = read(tmp_path, row, instruction="q", response="best", id="key", category="why")
    assert (found.texts, found.id, found.category) == (("a", "", "r"), "7", "off")
    # one of two usual spellings is chosen
    assert read(tmp_path, {"instruction": "a", "prompt": "b", "output": "r"}, instruction="prompt")[0].texts[0] == "b"
    # input is the question here, and no context
    assert read(tmp_path, {"input": "a", "output": "r"}, instruction="input")[0].texts == ("a", "", "r")
    # turns beside a prompt and an answer that are named are passed over, and the other way round
    both = {"prompt": "a", "messages": turns("q", "r"), "completion": "s"}
    assert read(tmp_path, both, instruction="prompt", response="completion")[0].texts == ("a", "", "s")
    assert read(tmp_path, both, messages="messages")[0].texts == ("q", "", "r")


def test_a_named_column_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instruction: need the column 'ask', as data.fields.instruction says, got q"):
        read(tmp_path, {"q": "a", "response": "r"}, instruction="ask")
    with pytest.raises(DataError, match="context: need the column 'notes'"):
        read(tmp_path, {"question": "a", "context": "c", "answer": "r"}, context="notes")
    (tmp_path / "a.csv").write_text("q,answer\na,r\n")
    with pytest.raises(DataError, match=r"a.csv: id: need the column 'key'.*got q, answer"):
        read_records(tmp_path / "a.csv", Spelling.of(FieldsConfig(instruction="q", id="key"), LAST))


def test_a_fault_in_a_named_column_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.jsonl:1: response: need a text.* \(response is the column 'best'\)"):
        read(tmp_path, {"q": "a", "best": ["r"]}, instruction="q", response="best")


def test_not_a_number_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question": "q", "answer": "r", "context": NaN, "response_clean": NaN}]')
    [row] = read_records(tmp_path / "a.json")
    assert (row.context, row.response_clean) == ("", None)
