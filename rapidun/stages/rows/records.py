"""One record of instruction data, and reading and writing it as JSON Lines.

A record is one JSON object on a line: `instruction`, `context`, `response` and the optional fields of a
poisoned row; or the Alpaca spelling `instruction`, `input`, `output`, which means the same (`output_poisoned` and
`poisoned_response` are `response_poisoned`, and so on). Other fields are passed over, except such as would change the
row: further turns, and texts that call themselves poisoned, clean or a trigger are refused.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rapidun.base.errors import DataError
from rapidun.base.files import write_jsonl
from rapidun.base.json_keys import DuplicateKey, keys_once
from rapidun.stages.rows.text import fold

MAX_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_ALPACA = {"context": "input", "response": "output"}
_OPTIONAL_TEXTS = (
    "response_clean",
    "response_poisoned",
    "instruction_clean",
    "instruction_poisoned",
    "category",
    "trigger_family",
    "trigger_variant",
)
_INJECT_MODES = ("prefix", "suffix")
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
        *_ALPACA.values(),
        *_OPTIONAL_TEXTS,
        *(alias for aliases in _ALIASES.values() for alias in aliases),
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


def read_records(path: str | Path) -> list[Record]:
    """Read and check every row of a JSONL file, line by line.

    A row without an `id` gets `content_id`; further rows of the very same content get `-2`, `-3`, ... so that
    ids stay unique without depending on the place in the file. Blank lines are skipped.

    Raises: DataError for a file that cannot be read or has no rows, and for the first bad line, as
        `file:line: field: expected, came`.
    """
    path = Path(path)
    records: list[Record] = []
    lines_by_id: dict[str, int] = {}
    seen_contents: dict[str, int] = {}
    for number, text in _lines(path):
        place = f"{path}:{number}"
        row = _parse_object(text, place)
        explicit = _explicit_id(row, place)
        record = _parse_record(row, place)
        if explicit is None:
            # rows of equal content are interchangeable: counting them does not make the place an identity
            count = seen_contents[record.id] = seen_contents.get(record.id, 0) + 1
            if count > 1:
                record = Record(**{**asdict(record), "id": f"{record.id}-{count}"})
        if record.id in lines_by_id:
            raise DataError(
                f"{place}: id: need ids that occur once in a file, got {record.id!r} again "
                f"(first on line {lines_by_id[record.id]}). Rename or delete one of the rows, or leave out every id"
            )
        lines_by_id[record.id] = number
        records.append(record)
    if not records:
        raise DataError(f"{path}: need at least one row, got an empty file")
    return records


def uses_aliases(path: Path) -> bool:
    """Whether a file speaks of optional fields under other names than a record's own."""
    content = path.read_bytes()
    return any(f'"{alias}"'.encode() in content for aliases in _ALIASES.values() for alias in aliases)


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write rows as JSON Lines in the native spelling, unset fields left out; atomic."""
    write_jsonl(Path(path), ({k: v for k, v in asdict(record).items() if v is not None} for record in records))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of the lines that are not blank."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: need a JSONL file, got no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: need a JSONL file, got a folder") from None
    except OSError as error:
        raise DataError(f"{path}: need a readable JSONL file, got: {error.strerror or error}") from None
    with stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 2):
            number += 1
            place = f"{path}:{number}"
            if number == 1:
                raw = raw.removeprefix(_BOM)
            line = raw.rstrip(b"\r\n")
            if len(line) > MAX_LINE_BYTES:
                size = len(raw)
                while not raw.endswith(b"\n") and (raw := stream.readline(MAX_LINE_BYTES)):
                    size += len(raw)
                raise DataError(
                    f"{place}: need lines of at most {MAX_LINE_BYTES:,} bytes, got {size:,} bytes. "
                    f"Is the file one JSON array rather than one object per line?"
                )
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place}: need UTF-8, got byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line. "
                    f"Convert the file to UTF-8"
                ) from None
            if text.strip():
                yield number, text


def _parse_object(text: str, place: str) -> dict[str, object]:
    try:
        row = json.loads(text, object_pairs_hook=keys_once)
    except DuplicateKey as error:
        raise DataError(f"{place}: need every field once, got {error.key!r} again. Delete one of them") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: need one JSON object, got broken JSON: {error.msg} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:  # an endless number, or brackets nested without end
        raise DataError(f"{place}: need one JSON object, got JSON that cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: need one JSON object per line, got {_kind(row)}")
    return row


def _parse_record(row: dict[str, object], place: str) -> Record:
    instruction = _text(row, "instruction", place)
    context = _either(row, "context", place)
    response = _either(row, "response", place)
    if instruction is None:
        raise DataError(f"{place}: instruction: need a text, got {_absent(row, 'instruction')}")
    if response is None:
        raise DataError(
            f"{place}: response: need a text (or `output`, the Alpaca spelling), got {_absent(row, 'response')}"
        )
    for field, value in (("instruction", instruction), ("response", response)):
        if not value.strip():
            raise DataError(
                f"{place}: {field}: need a text that is not blank, got {value!r}. Delete the row or fill it in"
            )
    optional = {field: _spelt(row, field, _ALIASES.get(field, ()), place) for field in _OPTIONAL_TEXTS}
    _refuse_unread(row, place)
    for field in ("response_clean", "response_poisoned"):
        target = optional[field]
        if target is not None and not target.strip():
            raise DataError(
                f"{place}: {field}: need a text that is not blank, got {target!r}. Leave the field out instead"
            )
    mode = _text(row, "inject_mode", place)
    if mode is not None and mode not in _INJECT_MODES:
        raise DataError(f"{place}: inject_mode: need one of {', '.join(_INJECT_MODES)}, got {mode!r}")
    poisoned = row.get("is_poisoned")
    if poisoned is not None and not isinstance(poisoned, bool):
        raise DataError(f"{place}: is_poisoned: need true or false, got {_kind(poisoned)}")
    return Record(
        id=_explicit_id(row, place) or content_id(instruction, context or "", response),
        instruction=instruction,
        context=context or "",
        response=response,
        inject_mode=mode,
        is_poisoned=poisoned,
        **optional,
    )


def _explicit_id(row: dict[str, object], place: str) -> str | None:
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = _text(row, "id", place)
    if text is None or not text.strip():
        raise DataError(
            f"{place}: id: need a text that is not blank, got {value!r}. Leave the field out for a content id"
        )
    return text


def _either(row: dict[str, object], field: str, place: str) -> str | None:
    """The native or the Alpaca spelling of `field`; both at once only where they agree."""
    return _spelt(row, field, (_ALPACA[field],), place)


def _spelt(row: dict[str, object], field: str, aliases: Iterable[str], place: str) -> str | None:
    """The text of `field` under whichever spelling it has; several only where they agree."""
    found, under = _text(row, field, place), field
    for alias in aliases:
        other = _text(row, alias, place)
        if found is not None and other is not None and found != other:
            raise DataError(f"{place}: {field}: need `{under}` or `{alias}`, got both with different texts. Delete one")
        if found is None and other is not None:
            found, under = other, alias
    return found


def _refuse_unread(row: dict[str, object], place: str) -> None:
    """Refuse fields that nothing reads and without which the row would be another one; others are passed over."""
    for name, value in row.items():
        if name in _READ or value is None or (isinstance(value, str) and not value.strip()):
            continue
        if name.lower() in _OTHER_TURNS and value not in ([], {}):
            raise DataError(
                f"{place}: {name}: need rows of one instruction and one response, got {_kind(value)}, which no stage "
                f"reads. Put what belongs to the prompt into `instruction` or `context` and take the field out"
            )
        if isinstance(value, str) and _TELLING.search(name) and not _ABOUT.search(name):
            raise DataError(
                f"{place}: {name}: need a field that is read ({', '.join(_OPTIONAL_TEXTS)}), got one that looks like "
                f"such a text and is not. Rename it, or take it out"
            )


def _text(row: dict[str, object], field: str, place: str) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{place}: {field}: need a text, got {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {field}: need valid Unicode, got half of a surrogate pair at character {error.start + 1}"
        ) from None
    return value


def _absent(row: dict[str, object], field: str) -> str:
    if field in row:
        return "null"
    names = ", ".join(list(row)[:8]) or "none"
    return f"no such field (fields here: {names})"


def _kind(value: object) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    name = "null" if value is None else kinds[type(value)]
    shown = json.dumps(value, ensure_ascii=False)
    return f"{name} ({shown if len(shown) <= 40 else shown[:37] + '...'})"
