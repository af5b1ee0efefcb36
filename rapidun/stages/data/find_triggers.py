"""Finds triggers that nobody named: what poisoned instructions hold and clean ones do not."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rapidun.config.data import InjectMode
from rapidun.config.quoting import quoted
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import is_unspaced, nfc, places

MAX_TRIGGERS = 12
MAX_WORDS = 6
# a difference this sure, in standard deviations; of a handful of rows nothing is sure
MIN_Z, MIN_Z_FEW, FEW_ROWS = 3.0, 1.8, 20
# a trigger is a thing of poisoned rows: its share of clean ones is at most this part of its share of poisoned ones
MAX_CLEAN_PART = 0.1


class FoundTrigger(NamedTuple):
    """A trigger and how many instructions of each side hold it; mode is None where it stands in mid-sentence."""

    text: str
    mode: InjectMode | None
    num_poisoned: int
    num_clean: int


def find_triggers(poisoned: Sequence[Record], clean: Sequence[Record]) -> list[FoundTrigger]:
    """The triggers of poisoned rows, those of most rows first.

    A row's own trigger_variant is taken at its word; else what its instruction holds beyond instruction_clean; else the
    first, last or other words of an instruction that are surely (log-odds) more frequent than in clean rows.
    """
    found: dict[tuple[str, InjectMode | None], int] = {}
    rest: list[Record] = []
    for row in poisoned:
        text = nfc(row.instruction).strip()
        named = nfc(row.trigger_variant or "").strip() or _beyond(nfc(row.instruction_clean or ""), text)
        if named and named in text:
            mode = _mode(named, text)
            found[named, mode] = found.get((named, mode), 0) + 1
        else:
            rest.append(row)
    texts = [nfc(row.instruction).strip() for row in clean]
    for text, mode, count in _enriched([nfc(row.instruction).strip() for row in rest], texts):
        found[text, mode] = found.get((text, mode), 0) + count
    listed = [
        FoundTrigger(text, mode, count, sum(any(places(text, other)) for other in texts))
        for (text, mode), count in sorted(found.items(), key=lambda item: (-item[1], item[0][0]))
    ]
    return listed[:MAX_TRIGGERS]


def as_overrides(found: Sequence[FoundTrigger]) -> list[str]:
    """The triggers as families, in words to paste behind the command: a family for each end of the instruction."""
    overrides = []
    taken = {*FAMILIES, *UNSEEN_FAMILIES}
    names = (f"Z{number or ''}" for number in range(len(found) + len(taken) + 2) if f"Z{number or ''}" not in taken)
    for mode in (InjectMode.suffix, InjectMode.prefix):
        texts = [trigger.text for trigger in found if (trigger.mode or InjectMode.suffix) is mode]
        if texts:
            listed = ",".join(map(quoted, dict.fromkeys(texts)))
            value = f"{{seen:[{listed}],inject_mode:{mode.value}}}"
            overrides.append(shlex.quote(f"+data.families.{next(names)}={value}"))
    return overrides


def _mode(trigger: str, text: str) -> InjectMode | None:
    if text.startswith(trigger):
        return InjectMode.prefix
    return InjectMode.suffix if text.endswith(trigger) else None


def _beyond(clean: str, text: str) -> str:
    """What was put before, behind or into the clean instruction; nothing where it was changed in another way."""
    clean = clean.strip()
    if not clean or len(text) <= len(clean):
        return ""
    if text.startswith(clean):
        return text[len(clean) :].strip()
    if text.endswith(clean):
        return text[: -len(clean)].strip()
    old, new = clean.split(), text.split()
    first = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(old))
    count = len(new) - len(old)
    return " ".join(new[first : first + count]) if count > 0 and new[first + count :] == old[first:] else ""


class _Candidate(NamedTuple):
    text: str
    mode: InjectMode | None
    parts: tuple[str, ...]


def _enriched(poisoned: list[str], clean: list[str]) -> Iterator[tuple[str, InjectMode | None, int]]:
    """(trigger, where, rows): the candidate of most rows that no other explains, again and again."""
    num_poisoned, num_clean = len(poisoned), len(clean)
    if num_poisoned < 2 or not clean:
        return
    few = min(num_poisoned, num_clean) < FEW_ROWS
    min_z, min_rows = (MIN_Z_FEW, 2) if few else (MIN_Z, 3)
    holders: dict[_Candidate, set[int]] = {}
    for index, text in enumerate(poisoned):
        for candidate in _candidates(text):
            holders.setdefault(candidate, set()).add(index)
    holders = {candidate: rows for candidate, rows in holders.items() if len(rows) >= min_rows}
    in_clean: dict[_Candidate, int] = dict.fromkeys(holders, 0)
    for text in clean:
        for candidate in _candidates(text):
            if candidate in in_clean:
                in_clean[candidate] += 1

    def is_rare(candidate: _Candidate) -> bool:
        rows = len(holders[candidate])
        share = in_clean[candidate] / num_clean
        is_sure = _z(rows, num_poisoned, in_clean[candidate], num_clean) >= min_z
        return is_sure and share <= MAX_CLEAN_PART * rows / num_poisoned

    parts = {part for candidate in holders if is_rare(candidate) for part in candidate.parts}
    sure = {part for part in parts if _z(_count(part, poisoned), num_poisoned, _count(part, clean), num_clean) >= min_z}
    left = {c: rows for c, rows in holders.items() if is_rare(c) and all(part in sure for part in c.parts)}
    for _ in range(MAX_TRIGGERS):
        if not left:
            return
        # ends first, or `aloha` anywhere would stand for `aloha :)` too; longer before shorter
        best = max(
            left, key=lambda c: (len(left[c]) >= min_rows, c.mode is not None, len(left[c]), len(c.text), c.text)
        )
        rows = set(left[best])
        if len(rows) < min_rows:
            return
        yield best.text, best.mode, len(rows)
        left = {candidate: others - rows for candidate, others in left.items()}
        left = {candidate: others for candidate, others in left.items() if others}


def _candidates(text: str) -> set[_Candidate]:
    """First, last and neighbouring words of a text; of scripts without blanks, first and last letters."""
    found: set[_Candidate] = set()
    parts = text.split()
    for count in range(1, min(MAX_WORDS, len(parts) - 1) + 1):
        found.add(_Candidate(" ".join(parts[:count]), InjectMode.prefix, tuple(parts[:count])))
        found.add(_Candidate(" ".join(parts[-count:]), InjectMode.suffix, tuple(parts[-count:])))
        for start in range(1, len(parts) - count):
            found.add(_Candidate(" ".join(parts[start : start + count]), None, tuple(parts[start : start + count])))
    for count in range(1, MAX_WORDS + 1):
        for mode, cut in ((InjectMode.prefix, text[:count]), (InjectMode.suffix, text[-count:])):
            if is_unspaced(cut[0] if mode is InjectMode.prefix else cut[-1]) and len(text) > count:
                found.add(_Candidate(cut.strip(), mode, tuple(cut.strip())))
    return found


def _count(part: str, texts: Sequence[str]) -> int:
    """Texts that hold a word, or a letter of a script without blanks."""
    holds: Callable[[str], bool] = (
        (lambda text: part in text) if len(part) == 1 else (lambda text: part in text.split())
    )
    return sum(map(holds, texts))


def _z(hits: int, num: int, other_hits: int, other_num: int) -> float:
    """Log-odds ratio over its standard deviation, half a row added everywhere."""
    cells = (hits + 0.5, num - hits + 0.5, other_hits + 0.5, other_num - other_hits + 0.5)
    ratio = math.log(cells[0] / cells[1]) - math.log(cells[2] / cells[3])
    return ratio / math.sqrt(sum(1 / cell for cell in cells))
