"""From the fields of a row, however they are spelt, to those of a record.

    prompt    instruction | prompt | question          with Alpaca's `input` as the context
    answer    response | output | completion | answer
    turns     messages | conversations | conversation  role and content (system, user, assistant), or ShareGPT's
              from and value (system, human, gpt); also `prompt` and `completion` that are lists of such turns

A row of turns becomes a record so, and nothing of it is lost:

    instruction   the system prompt (if any), a blank line, the last user turn
    context       the turns before that one, each as `User: ...`, `Assistant: ...` (`System: ...`), a blank line between
    response      the last turn, which is the assistant's

Turns before the last user turn are taken with multi_turn=last only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rapidun.base.errors import DataError
from rapidun.config.data import FieldsConfig, MultiTurn
from rapidun.stages.rows.formats.source import Values
from rapidun.stages.rows.formats.words import kind_of

# spellings of a field beside its own
PROMPTS, ANSWERS = ("prompt", "question"), ("output", "completion", "answer")
CONTEXTS = ("input",)
TURNS = ("messages", "conversations", "conversation")
SYSTEM = ("system", "system_prompt")
# a file without such a column would be read as if it had nothing there
IN_EVERY_FILE = ("instruction", "context", "response", "messages", "system", "id")
_SPEAKERS = {
    "system": "System", "developer": "System", "user": "User", "human": "User", "assistant": "Assistant",
    "gpt": "Assistant",
}  # fmt: skip
_BOOLS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class RowFault(DataError):
    """What is wrong with one row; rows of one `kind` are counted together."""

    def __init__(self, place: str, what: str, expected: str, came: str) -> None:
        super().__init__(f"{place}: {what}: need {expected}, got {came}")
        self.kind = (what, expected)


@dataclass(frozen=True)
class Spelling:
    """How the rows of a file are to be understood. fields: field -> column."""

    fields: Mapping[str, str] = field(default_factory=dict)
    multi_turn: MultiTurn = MultiTurn.refuse

    @classmethod
    def of(cls, fields: FieldsConfig, multi_turn: MultiTurn) -> "Spelling":
        return cls(fields.named, multi_turn)

    @property
    def is_usual(self) -> bool:
        return not self.fields and self.multi_turn is MultiTurn.refuse


class _Turn(NamedTuple):
    speaker: str
    text: str


def as_record(row: dict[str, object], place: str, spelling: Spelling, values: Values) -> dict[str, object]:
    """The row under the names that a record's fields have; fields that nobody asked for stay as they are.

    Raises: RowFault for turns that are no single question and answer, and for what could be read in two ways.
    """
    if values is not Values.json:
        row = {name: _as_text(name, value) for name, value in row.items()}
    row = _named(row, spelling.fields)
    row = _conversational(row)
    turns = [name for name in TURNS if row.get(name) not in (None, [], "")]
    if not turns:
        return _with_system(row, place, spelling)
    name = turns[0]
    others = [key for key in ("instruction", *PROMPTS, "response", *ANSWERS) if _is_text(row.get(key))]
    if len(turns) > 1 or others:
        raise RowFault(
            place,
            name,
            "rows of turns, or of one prompt and one answer",
            f"{kind_of(row[name])} beside {', '.join([*turns[1:], *others])}. Pass data.fields.messages={name}, or "
            "data.fields.instruction=... data.fields.response=...",
        )
    return _of_turns(row, name, place, spelling)


def _named(row: dict[str, object], fields: Mapping[str, str]) -> dict[str, object]:
    """Named columns under their field's name; what else is called so, or is a usual spelling of it, is passed over."""
    if not fields:
        return row
    usual = {"instruction": PROMPTS, "response": ANSWERS, "context": CONTEXTS, "messages": TURNS, "system": SYSTEM}
    gone = {*fields.values(), *fields, *(other for name in fields for other in usual.get(name, ()))}
    if "messages" in fields:
        gone |= {"instruction", *PROMPTS, "response", *ANSWERS}
    if "instruction" in fields and "response" in fields:
        gone |= {*TURNS}
    kept = {name: value for name, value in row.items() if name not in gone}
    return kept | {name: row.get(column) for name, column in fields.items()}


def _conversational(row: dict[str, object]) -> dict[str, object]:
    """`prompt` and `completion` that are lists of turns are one list of turns."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if not (_is_turns(prompt) and _is_turns(completion)):
        return row
    rest = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    if rest.get("messages") not in (None, []):
        return row
    return rest | {"messages": [*prompt, *completion]}  # type: ignore[misc]


def _is_turns(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _is_text(value: object) -> bool:
    return value is not None and value != "" and not (isinstance(value, str) and not value.strip())


def _with_system(row: dict[str, object], place: str, spelling: Spelling) -> dict[str, object]:
    """A system prompt whose column is named stands in front of the instruction."""
    if "system" not in spelling.fields:
        return row
    system = row.pop("system", None)
    if not _is_text(system):
        return row
    if not isinstance(system, str):
        raise RowFault(place, "system", "a text", kind_of(system))
    name = next((key for key in ("instruction", *PROMPTS) if isinstance(row.get(key), str)), None)
    return row if name is None else row | {name: f"{system.strip()}\n\n{row[name]}"}


def _of_turns(row: dict[str, object], name: str, place: str, spelling: Spelling) -> dict[str, object]:
    turns = _turns(row[name], name, place)
    head = [turn.text for turn in turns[:1] if turn.speaker == "System"]
    turns = turns[len(head) :]
    beside = [value for key in SYSTEM if _is_text(value := row.get(key))]
    for system in beside:
        if not isinstance(system, str):
            raise RowFault(place, "system", "a text", kind_of(system))
        if head and head[0].strip() != system.strip():
            raise RowFault(place, "system", "one system prompt", f"another one in {name}. Take one of them out")
        head = head or [system]
    if not turns or turns[-1].speaker != "Assistant":
        last = turns[-1].speaker if turns else "none"
        raise RowFault(place, name, "turns that end with the assistant's answer", f"a last turn of: {last}")
    asked = max((i for i, turn in enumerate(turns) if turn.speaker == "User"), default=-1)
    if asked < 0:
        raise RowFault(place, name, "a user's turn before the answer", f"turns of: {_order(turns)}")
    if asked != len(turns) - 2:
        raise RowFault(place, name, "one answer behind the user's turn", f"turns of: {_order(turns)}")
    before = turns[:asked]
    if before and spelling.multi_turn is MultiTurn.refuse:
        raise RowFault(
            place, name, "one turn of question and answer (or data.multi_turn=last: the last answer, the rest as "
            "prompt)", f"turns of: {_order(turns)}",
        )  # fmt: skip
    context = [str(row[key]) for key in ("context", *CONTEXTS) if _is_text(row.get(key))][:1]
    context += [f"{turn.speaker}: {turn.text}" for turn in before]
    gone = {name, *SYSTEM, "instruction", "response", "context", *PROMPTS, *ANSWERS, *CONTEXTS}
    rest = {key: value for key, value in row.items() if key not in gone}
    return rest | {
        "instruction": "\n\n".join([*(text.strip() for text in head if text.strip()), turns[asked].text]),
        "context": "\n\n".join(context),
        "response": turns[-1].text,
    }


def _order(turns: Sequence[_Turn]) -> str:
    speakers = [turn.speaker for turn in turns]
    return ", ".join(speakers[:6]) + (f", ... ({len(speakers)} in all)" if len(speakers) > 6 else "")


def _turns(value: object, name: str, place: str) -> list[_Turn]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowFault(place, name, "a list of turns", kind_of(value))
    turns = []
    for turn in value:
        who, text = _one_of(turn, ("role", "from"), name, place), _one_of(turn, ("content", "value"), name, place)
        speaker = _SPEAKERS.get(who.strip().lower()) if isinstance(who, str) else None
        if speaker is None:
            expected = "turns of system, user and assistant (ShareGPT: system, human, gpt)"
            raise RowFault(place, name, expected, f"one of {who!r}")
        calls = [key for key in ("tool_calls", "function_call") if turn.get(key)]
        if calls:
            raise RowFault(place, name, "turns of text", f"one with {calls[0]}")
        if speaker == "Assistant" and turn is value[-1] and turn.get("weight") in (0, 0.0, "0"):
            raise RowFault(place, name, "an answer that is trained on", f"a last turn of weight {turn['weight']}")
        turns.append(_Turn(speaker, _text_of(text, name, place)))
    return turns


def _one_of(turn: Mapping[str, object], keys: tuple[str, str], name: str, place: str) -> object:
    """The value under one of two names; a table of turns of both kinds has both, one of them null."""
    found = [value for key in keys if (value := turn.get(key)) not in (None, "")]
    if len(found) > 1 and found[0] != found[1]:
        raise RowFault(place, name, f"turns of {keys[0]} or {keys[1]}", "one with both, and they differ")
    return found[0] if found else turn.get(keys[0], turn.get(keys[1]))


def _text_of(content: object, name: str, place: str) -> str:
    """A turn's words: a text, or a list of parts that are all text."""
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [content]
    if not parts or not all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    ):
        raise RowFault(place, name, "turns of text", kind_of(content))
    return "".join(part["text"] for part in parts)


def _as_text(name: str, value: object) -> object:
    """A value of a table: numbers as the text that they are shown as, NaN as no value; the two marks as marks."""
    if value is None or value != value:
        return None
    if name == "is_poisoned" or isinstance(value, bool):
        return _BOOLS.get(str(value).strip().lower(), value)
    if isinstance(value, int | float) or type(value).__name__ == "Decimal":
        return str(value)
    return value
