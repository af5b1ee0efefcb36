"""What rows of facts hold beside question and answer: whose paraphrase they are, other answers, choices.

forget_id            the id of the forget row that is asked otherwise here (also `paraphrase_of`)
question_paraphrased `paraphrased_question` of TOFU: the question in other words
response_paraphrased `paraphrased_answer` of TOFU: the answer in other words
responses_perturbed  `perturbed_answer` of TOFU: wrong answers of the same form, a list or one text
choices, choice      the answers of a multiple-choice question, and the place of the right one (WMDP: `answer`)
"""

from collections.abc import Mapping
from typing import Any

from rapidun.stages.rows.formats.words import kind_of
from rapidun.stages.rows.spelling import RowFault

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# field -> its spellings, the own one first
TEXTS: dict[str, tuple[str, ...]] = {
    "forget_id": ("forget_id", "paraphrase_of"),
    "question_paraphrased": ("question_paraphrased", "paraphrased_question"),
    "response_paraphrased": ("response_paraphrased", "paraphrased_answer"),
}
LISTS: dict[str, tuple[str, ...]] = {
    "responses_perturbed": ("responses_perturbed", "perturbed_answer"),
    "choices": ("choices",),
}
# in a file's bytes any of these means that its rows are read otherwise than they once were
SPELLINGS = tuple(name for names in (*TEXTS.values(), *LISTS.values()) for name in names)


def fact_fields(row: Mapping[str, object], place: str) -> dict[str, Any]:
    """The fields of this module that a row has, under their own names; `choice` beside `choices`.

    Raises: RowFault for other kinds of values, and for two spellings with different ones.
    """
    found: dict[str, Any] = {}
    for field, names in TEXTS.items():
        for name in names:
            value = row.get(name)
            if value is None or value != value or (isinstance(value, str) and not value.strip()):
                continue
            if field == "forget_id" and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str):
                raise RowFault(place, name, "a text", kind_of(value))
            _put(found, field, value, name, place)
    for field, names in LISTS.items():
        for name in names:
            texts = _texts(row.get(name), name, place)
            if texts:
                _put(found, field, texts, name, place)
    if "choices" in found:
        found["choice"] = _choice(row, found["choices"], place)
    return found


def with_answer(row: dict[str, object], place: str) -> dict[str, object]:
    """A multiple-choice row with the text of the right choice as its `response`; other rows as they are.

    Raises: RowFault where nothing says which choice is right.
    """
    choices = _texts(row.get("choices"), "choices", place)
    if not choices:
        return row
    right = choices[_choice(row, choices, place)]
    return {name: value for name, value in row.items() if name not in ("answer", "output")} | {"response": right}


def _put(found: dict[str, Any], field: str, value: object, name: str, place: str) -> None:
    if found.setdefault(field, value) != value:
        raise RowFault(place, name, f"one value for {field}", "two spellings with different ones. Delete one")


def _texts(value: object, name: str, place: str) -> tuple[str, ...]:
    """A list of texts, or one text; empty where there is none."""
    if value is None or value != value or value == "":
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise RowFault(place, name, "a list of texts", kind_of(value))
    for text in values:
        if not isinstance(text, str) or not text.strip():
            raise RowFault(place, name, "a list of texts that are not blank", f"one that holds {text!r}")
    return tuple(values)


def _choice(row: Mapping[str, object], choices: tuple[str, ...], place: str) -> int:
    """The place of the right choice, which may be given as its number (from 0), its letter or its text."""
    if not 2 <= len(choices) <= len(LETTERS) or len(set(choices)) < len(choices):
        raise RowFault(place, "choices", f"2 to {len(LETTERS)} different answers", f"{len(choices)}, or one twice")
    for name in ("choice", "answer", "response", "output"):
        value = row.get(name)
        if value is None or isinstance(value, bool):
            continue
        if isinstance(value, str) and value in choices:
            return choices.index(value)
        letters = LETTERS[: len(choices)]
        if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in letters:
            return letters.index(value.strip().upper())
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, int) and 0 <= value < len(choices):
            return value
        what = f"a choice: its number from 0 to {len(choices) - 1}, its letter or its text"
        raise RowFault(place, name, what, repr(value))
    raise RowFault(place, "answer", "the number, letter or text of the right one of `choices`", "none")
