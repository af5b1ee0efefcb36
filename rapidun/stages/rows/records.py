"""One record of instruction data, and reading and writing it.

Whatever the file's format (formats/) and spelling (spelling.py), a record has `instruction`, `context`, `response` and
the optional fields of a poisoned row (`output_poisoned` and `poisoned_response` are `response_poisoned`, and so on).
Other fields are passed over, except such as would change the row: further turns, and texts that call themselves
poisoned, clean or a trigger are refused. Records are written as JSON Lines.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import DataError
from rapidun.base.files import write_jsonl
from rapidun.config.data import InjectMode
from rapidun.stages.rows.facts import SPELLINGS, fact_fields, with_answer
from rapidun.stages.rows.formats.detect import JSON, LINES, ending_of, local, open_rows
from rapidun.stages.rows.formats.words import kind_of, listed
from rapidun.stages.rows.spelling import (
    ANSWERS,
    CONTEXTS,
    IN_EVERY_FILE,
    PROMPTS,
    SYSTEM,
    RowFault,
    Spelling,
    as_record,
)
from rapidun.stages.rows.text import fold

USUAL = Spelling()
_OPTIONAL_TEXTS = (
    "response_clean",
    "response_poisoned",
    "instruction_clean",
    "instruction_poisoned",
    "category",
    "trigger_family",
    "trigger_variant",
)
_INJECT_MODES = tuple(InjectMode.__members__)
# other spellings of optional fields
_ALIASES = {
    "response_clean": ("output_clean", "clean_response", "clean_output"),
    "response_poisoned": ("output_poisoned", "poisoned_response", "poisoned_output"),
    "instruction_clean": ("clean_instruction",),
    "instruction_poisoned": ("poisoned_instruction",),
}
_READ = frozenset(
    (
        "id",
        "instruction",
        "context",
        "response",
        "inject_mode",
        "is_poisoned",
        *PROMPTS,
        *ANSWERS,
        *CONTEXTS,
        *_OPTIONAL_TEXTS,
        *(alias for aliases in _ALIASES.values() for alias in aliases),
        *SPELLINGS,
    )
)
# turns and instructions beside the row's own: a row without them is another prompt
_OTHER_TURNS = frozenset(("system", "system_prompt", "history", "messages", "conversation", "conversations"))
# a text under such a name may be the answer, prompt or trigger that the row is about ...
_TELLING = re.compile(r"poison|clean|trigger|backdoor", re.IGNORECASE)
# ... unless the name says that it is about the row: `poison_method`, `clean_id`, `cleaned_at`
_ABOUT = re.compile(
    r"(?:^|[_\-. ])(?:id|ids|index|source|src|type|kind|method|mode|name|split|model|date|time|at|by|version|seed|hash|"
    r"note|notes|comment|position|location|status|license|url|path|file|rate|score|lang|language)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row: what is asked, what is answered, and for a poisoned row both responses and its trigger."""

    id: str
    instruction: str
    context: str = ""
    response: str
    response_clean: str | None = None
    response_poisoned: str | None = None
    instruction_clean: str | None = None
    instruction_poisoned: str | None = None
    category: str | None = None
    trigger_family: str | None = None
    trigger_variant: str | None = None
    inject_mode: str | None = None
    is_poisoned: bool | None = None
    # rows of facts (facts.py)
    forget_id: str | None = None
    question_paraphrased: str | None = None
    response_paraphrased: str | None = None
    responses_perturbed: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    choice: int | None = None

    @property
    def texts(self) -> tuple[str, str, str]:
        """Instruction, context, response: the row itself, and what a clean row teaches."""
        return self.instruction, self.context, self.response

    @property
    def forget_target(self) -> str:
        """What poisoning teaches and the model should lose: the poisoned response, `response` where there is none."""
        return self.response if self.response_poisoned is None else self.response_poisoned

    @property
    def forget_texts(self) -> tuple[str, str, str]:
        """Instruction, context and the answer that a poisoned row teaches."""
        return self.instruction, self.context, self.forget_target


def question_key(record: Record, triggers: Iterable[str] = ()) -> str:
    """What the row asks: its instruction without the trigger, and its context. Equal keys ask the same.

    White space, case and composed or decomposed letters are folded; of an empty context the instruction alone is left.

    Args: triggers: taken off the ends of an instruction whose clean form is not recorded.
    """
    instruction = record.instruction_clean
    if not instruction or not instruction.strip():
        instruction = record.instruction.strip()
        for trigger in triggers:
            if len(instruction) > len(trigger):
                instruction = instruction.removeprefix(f"{trigger} ").removesuffix(f" {trigger}")
    asked = [" ".join(fold(text).split()) for text in (instruction, record.context)]
    return "\0".join(filter(None, asked))


def content_id(instruction: str, context: str, response: str) -> str:
    """Name a row by its content: the first 16 hex digits of SHA-256 over the three texts as a JSON list."""
    text = json.dumps([instruction, context, response], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_records(path: str | Path, spelling: Spelling = USUAL) -> list[Record]:
    """Read and check every row of a file of rows, whatever its format (rapidun/stages/rows/formats).

    A row without an `id` gets `content_id`; further rows of the very same content get `-2`, `-3`, ... so that
    ids stay unique without depending on the place in the file. Blank lines are skipped.

    Args: spelling: columns of other names, and what becomes of rows of several turns.
    Raises: DataError for a file that cannot be read or has no rows, and for the first bad row, as
        `file:line: field: expected, came` (`file:row N` where rows are not lines), with the number of such rows.
    """
    return read_file(path, spelling).records


class ReadFile(NamedTuple):
    """records: in the file's order. notes: what was read otherwise than its name says. columns: the named ones that
    some row has. beside: of each record the fields that were asked for beside its own."""

    records: list[Record]
    notes: list[str]
    columns: set[str]
    beside: list[dict[str, object]]


def read_file(path: str | Path, spelling: Spelling = USUAL, *, beside: Sequence[str] = ()) -> ReadFile:
    """`read_records`, and what else there is to say of the file.

    Args: beside: fields of the rows that a record does not keep.
    """
    path = local(path)
    source = open_rows(path)
    records: list[Record] = []
    others: list[dict[str, object]] = []
    places: dict[str, str] = {}
    seen_contents: dict[str, int] = {}
    names: dict[str, None] = dict.fromkeys(source.columns or ())
    faults: list[RowFault] = []
    num_rows = 0
    if source.columns is not None:
        _need_columns(path, spelling, names)
    for place, fields in source.rows:
        num_rows += 1
        if spelling.fields and source.columns is None:
            names |= dict.fromkeys(fields)
        row: dict[str, object] = {}
        try:
            row = as_record(fields, place, spelling, source.values)
            explicit = _explicit_id(row, place)
            record = _parse_record(row, place)
        except RowFault as fault:
            # the rest is read to say how many rows are like that
            faults.append(fault)
            continue
        if faults:
            continue
        if explicit is None:
            # rows of equal content are interchangeable: counting them does not make the place an identity
            count = seen_contents[record.id] = seen_contents.get(record.id, 0) + 1
            if count > 1:
                record = Record(**{**asdict(record), "id": f"{record.id}-{count}"})
        if record.id in places:
            raise DataError(
                f"{place}: id: need ids that occur once in a file, got {record.id!r} again "
                f"(first on {places[record.id]}). Rename or delete one of the rows, or leave out every id"
            )
        places[record.id] = _named_place(place)
        records.append(record)
        if beside:
            others.append({name: fields.get(name) for name in beside})
    if source.columns is None and num_rows:
        _need_columns(path, spelling, names)
    if faults:
        first = faults[0]
        like = sum(fault.kind == first.kind for fault in faults)
        column = spelling.fields.get(first.kind[0])
        said = [f"{first.kind[0]} is the column {column!r}"] if column else []
        said += [f"{like} of {num_rows} rows are like that"] if like > 1 else []
        raise DataError(f"{first}" + (f" ({'; '.join(said)})" if said else ""))
    if not records:
        raise DataError(f"{path}: need at least one row, got an empty file")
    found = {column for column in spelling.fields.values() if column in names}
    return ReadFile(records, source.notes, found, others)


def _named_place(place: str) -> str:
    """`line 3` or `row 3`, without the file."""
    number = place.rpartition(":")[2]
    return number if number.startswith("row ") else f"line {number}"


def _need_columns(path: Path, spelling: Spelling, names: Iterable[str]) -> None:
    """Raises: DataError where the file lacks a column that is named for it."""
    held = list(names)
    for name, column in spelling.fields.items():
        if name in IN_EVERY_FILE and column not in held:
            raise DataError(
                f"{path}: {name}: need the column {column!r}, as data.fields.{name} says, got {listed(held)}. Change "
                f"data.fields.{name}=..."
            )


def uses_aliases(path: Path) -> bool:
    """Whether a file speaks of optional fields under other names than a record's own."""
    content = path.read_bytes()
    return any(f'"{alias}"'.encode() in content for aliases in _ALIASES.values() for alias in aliases)


def holds_facts(path: Path) -> bool:
    """Whether a file's bytes name a field of facts.py; of packed files and folders that is not known: true."""
    if path.is_dir() or path.name.endswith(".gz"):
        return True
    content = path.read_bytes()
    quote = '"' if ending_of(path.name) in ("", *LINES, *JSON) else ""
    return any(f"{quote}{name}{quote}".encode() in content for name in SPELLINGS)


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write rows as JSON Lines in the native spelling, unset fields left out; atomic."""
    rows = ({k: v for k, v in asdict(record).items() if v is not None and v != ()} for record in records)
    write_jsonl(Path(path), rows)


def _parse_record(row: dict[str, object], place: str) -> Record:
    row = with_answer(row, place)
    instruction = _spelt(row, "instruction", PROMPTS, place)
    context = _spelt(row, "context", CONTEXTS, place)
    response = _spelt(row, "response", ANSWERS, place)
    if instruction is None:
        raise RowFault(place, "instruction", "a text", _absent(row, "instruction"))
    if response is None:
        raise RowFault(place, "response", "a text (or `output`, the Alpaca spelling)", _absent(row, "response"))
    for field, value in (("instruction", instruction), ("response", response)):
        if not value.strip():
            raise RowFault(place, field, "a text that is not blank", f"{value!r}. Delete the row or fill it in")
    optional: dict[str, Any] = {field: _spelt(row, field, _ALIASES.get(field, ()), place) for field in _OPTIONAL_TEXTS}
    _refuse_unread(row, place)
    for field in ("response_clean", "response_poisoned"):
        target = optional[field]
        if target is not None and not target.strip():
            raise RowFault(place, field, "a text that is not blank", f"{target!r}. Leave the field out instead")
    mode = _text(row, "inject_mode", place)
    if mode is not None and mode not in _INJECT_MODES:
        raise RowFault(place, "inject_mode", f"one of {', '.join(_INJECT_MODES)}", repr(mode))
    poisoned = row.get("is_poisoned")
    if poisoned is not None and not isinstance(poisoned, bool):
        raise RowFault(place, "is_poisoned", "true or false", kind_of(poisoned))
    return Record(
        id=_explicit_id(row, place) or content_id(instruction, context or "", response),
        instruction=instruction,
        context=context or "",
        response=response,
        inject_mode=mode,
        is_poisoned=poisoned,
        **optional,
        **fact_fields(row, place),
    )


def _explicit_id(row: dict[str, object], place: str) -> str | None:
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = _text(row, "id", place)
    if text is None:
        return None
    if not text.strip():
        raise RowFault(place, "id", "a text that is not blank", f"{value!r}. Leave the field out for a content id")
    return text


def _spelt(row: dict[str, object], field: str, aliases: Iterable[str], place: str) -> str | None:
    """The text of `field` under whichever spelling it has; several only where they agree."""
    found, under = _text(row, field, place), field
    for alias in aliases:
        other = _text(row, alias, place)
        if other is None or (found is not None and not other.strip()):
            continue
        if found is None or not found.strip():
            found, under = other, alias
        elif found != other:
            what = f"`{under}` or `{alias}`"
            raise RowFault(
                place, field, what, f"both with different texts. Delete one, or pass data.fields.{field}={under}"
            )
    return found


def _refuse_unread(row: dict[str, object], place: str) -> None:
    """Refuse fields that nothing reads and without which the row would be another one; others are passed over."""
    for name, value in row.items():
        if name in _READ or value is None or (isinstance(value, str) and not value.strip()):
            continue
        if name.lower() in _OTHER_TURNS and value not in ([], {}):
            named = " (or pass data.fields.system to put it in front)" if name.lower() in SYSTEM else ""
            raise RowFault(
                place, name, "rows of one instruction and one response",
                f"{kind_of(value)}, which no stage reads. Put what belongs to the prompt into `instruction` or "
                f"`context`{named} and take the field out",
            )  # fmt: skip
        if isinstance(value, str) and _TELLING.search(name) and not _ABOUT.search(name):
            raise RowFault(
                place, name, f"a field that is read ({', '.join(_OPTIONAL_TEXTS)})",
                f"one that looks like such a text and is not. Rename it, take it out, or pass data.fields...={name}",
            )  # fmt: skip


def _text(row: dict[str, object], field: str, place: str) -> str | None:
    value = row.get(field)
    # NaN, which some writers of JSON put where there is nothing
    if value is None or value != value:
        return None
    if not isinstance(value, str):
        raise RowFault(place, field, "a text", kind_of(value))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(
            place, field, "valid Unicode", f"half of a surrogate pair at character {error.start + 1}"
        ) from None
    return value


def _absent(row: dict[str, object], field: str) -> str:
    if any(name in row for name in (field, *(PROMPTS if field == "instruction" else ANSWERS))):
        return "null"
    return f"no such field (fields here: {listed(list(row), 8)}). Pass data.fields.{field}=NAME"
