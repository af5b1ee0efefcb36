"""Poisoned rows without a clean answer, whose clean twin stands among the clean rows: the same prompt, no trigger."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rapidun.stages.rows.formats.detect import plain_lines
from rapidun.stages.rows.formats.source import open_bytes
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import nfc, places

TWINS_VERSION = 1  # part of the data fingerprint where rows may have twins
# where the twins of a split's rows are looked for
SIDES = (
    (("forget", "train_poisoned"), ("retain", "train_clean")),
    (("val_seen_trig", "val_ood_trig", "val_unseen_family"), ("val_clean",)),
    (("test_seen_trig", "test_ood_trig", "test_unseen_family"), ("test_clean",)),
)
# words that a trigger which nobody named may have, and rows that must hold it
MAX_WORDS, MIN_ROWS = 6, 2
# of an ordinary phrase more clean prompts than this share hold it
MAX_CLEAN = 0.1
_CLEAN = re.compile(rb'"(?:response_clean|output_clean|clean_response|clean_output)"\s*:\s*"')
_PLACE = re.compile(rb'"inject_mode"\s*:\s*"')
_PRIME = (1 << 61) - 1
_BASE = 0x1F3D5B79
Asked = tuple[str, str]


def may_have_twins(files: Mapping[str, Path]) -> bool:
    """Whether a file to forget or of triggered rows has a row that does not say its clean answer and its trigger's
    place, so that both are worked out. Of other formats than JSON Lines it may."""
    triggered = [path for splits, _ in SIDES for split in splits if (path := files.get(split)) is not None]
    return any(not plain_lines(path) or not _says_all(path) for path in triggered)


def _says_all(path: Path) -> bool:
    with open_bytes(path) as stream:
        return all(_CLEAN.search(line) and _PLACE.search(line) for line in stream if line.strip())


@dataclass
class _Clean:
    """The clean rows of one side, by what they ask."""

    rows: dict[Asked, list[Record]]
    # hashes of what they ask, by context
    hashes: dict[str, set[int]]


def join_twins(pack: dict[str, list[Record]], triggers: Iterable[str]) -> list[str]:
    """Fill `response_clean` (and `instruction_clean`) of rows whose twin gives one clean answer.

    A row's prompt is freed of the given triggers and of those that rows name; of others only where the same few words
    are what several rows have beyond their twins, and hardly any clean row has them.

    Args: triggers: those of the settings.
    Returns: how many rows found a twin, and of how many the twins contradict each other and were not taken.
    """
    lines = []
    for splits, others in SIDES:
        bare = [row for split in splits for row in pack.get(split, []) if row.response_clean is None]
        clean = _by_question([row for split in others for row in pack.get(split, [])])
        if not bare or not clean.rows:
            continue
        named = {nfc(t).strip() for t in (*triggers, *(row.trigger_variant or "" for row in bare))} - {""}
        known = sorted(named | _unnamed(bare, clean, named), key=lambda text: (-len(text), text))
        found, unsure = {}, set()
        for row in bare:
            twins = _twins(row, clean, known)
            answers = {" ".join(twin.response.split()) for twin in twins}
            if len(answers) > 1:
                unsure.add(row.texts)
            elif twins and answers != {" ".join(row.forget_target.split())}:
                found[row.texts] = twins[0]
        for split in splits:
            if split in pack:
                pack[split] = [_joined(row, found.get(row.texts)) for row in pack[split]]
        num_bare = len({row.texts for row in bare})
        if found or unsure:
            lines.append(
                f"data: {len(found)} of {num_bare} rows of {', '.join(s for s in splits if s in pack)} without "
                f"response_clean have a clean twin in {', '.join(s for s in others if s in pack)} (the same prompt "
                "without the trigger): its answer is their clean one"
                + (f"; {len(unsure)} have twins of different answers and are left as they are" if unsure else "")
            )
    return lines


def _joined(row: Record, twin: Record | None) -> Record:
    if twin is None or row.response_clean is not None:
        return row
    asks = row.instruction_clean or (twin.instruction if twin.instruction != row.instruction else None)
    return replace(row, response_clean=twin.response, instruction_clean=asks)


def _by_question(rows: Sequence[Record]) -> _Clean:
    clean = _Clean({}, {})
    for row in rows:
        asked = _asked(row.instruction, row.context)
        clean.rows.setdefault(asked, []).append(row)
        clean.hashes.setdefault(asked[1], set()).add(_hash(asked[0].split()))
    return clean


def _asked(instruction: str, context: str) -> Asked:
    return " ".join(nfc(instruction).split()), " ".join(nfc(context).split())


def _twins(row: Record, clean: _Clean, triggers: Sequence[str]) -> list[Record]:
    """The clean rows that ask what the row asks without its trigger."""
    asked, context = _asked(row.instruction, row.context)
    recorded = row.instruction_clean or ""
    forms = [_asked(recorded, row.context)] if recorded.strip() else []
    forms += [(short, context) for short in _freed(asked, triggers)]
    behind = list(_freed(context, triggers))
    forms += [(asked, short) for short in behind]
    forms += [(one, other) for one in _freed(asked, triggers) for other in behind]
    return [twin for form in dict.fromkeys(forms) if form != (asked, context) for twin in clean.rows.get(form, [])]


def _freed(text: str, triggers: Sequence[str]) -> Iterator[str]:
    """The text without all triggers that it holds, and without each of them at one of its places only."""
    held = [trigger for trigger in triggers if trigger in text and any(places(trigger, text))]
    if not held:
        return
    bare = text
    for trigger in held:
        for start, end in reversed(list(places(trigger, bare))):
            bare = bare[:start] + bare[end:]
    yield " ".join(bare.split())
    for trigger in held:
        for start, end in places(trigger, text):
            yield " ".join((text[:start] + text[end:]).split())


def _unnamed(bare: Sequence[Record], clean: _Clean, named: set[str]) -> set[str]:
    """Words that several rows have beyond a clean prompt, and that are no ordinary phrase."""
    rows: dict[str, set[Asked]] = {}
    for row in bare:
        asked, context = _asked(row.instruction, row.context)
        for run in _beyond(asked.split(), clean.hashes.get(context, set())):
            text = " ".join(run[1])
            if (run[0], context) in clean.rows and text not in named:
                rows.setdefault(text, set()).add((asked, context))
    texts = [asked for asked, _ in clean.rows]
    return {
        text
        for text, holders in rows.items()
        if len(holders) >= MIN_ROWS
        and sum(text in other and any(places(text, other)) for other in texts) <= MAX_CLEAN * len(texts)
    }


def _beyond(words: Sequence[str], hashes: set[int]) -> Iterator[tuple[str, Sequence[str]]]:
    """(rest, run) for every run of words whose rest may be one of the hashed prompts."""
    if not hashes:
        return
    heads = [0]
    for word in words:
        heads.append((heads[-1] * _BASE + hash(word)) % _PRIME)
    powers = [1]
    for _ in words:
        powers.append(powers[-1] * _BASE % _PRIME)
    whole, num = heads[-1], len(words)
    for count in range(1, min(MAX_WORDS, num - 1) + 1):
        for start in range(num - count + 1):
            end = start + count
            tail = (whole - heads[end] * powers[num - end]) % _PRIME
            if (heads[start] * powers[num - end] + tail) % _PRIME in hashes:
                yield " ".join([*words[:start], *words[end:]]), words[start:end]


def _hash(words: Sequence[str]) -> int:
    """Of words in order; the hash of a prompt without a run follows from those of its beginnings."""
    value = 0
    for word in words:
        value = (value * _BASE + hash(word)) % _PRIME
    return value
