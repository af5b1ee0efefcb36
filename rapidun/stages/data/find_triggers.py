"""Finds triggers that nobody named: what poisoned instructions hold and clean ones do not."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rapidun.config.data import InjectMode
from rapidun.config.quoting import quoted
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES
from rapidun.stages.rows.inserted import inserted
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import is_unspaced, nfc, places

MAX_TRIGGERS = 12
MAX_WORDS = 6
# a difference this sure, in standard deviations; of a handful of rows nothing is sure
MIN_Z, MIN_Z_FEW, FEW_ROWS = 3.0, 1.8, 20
# a trigger is a thing of poisoned rows: its share of clean ones is at most this part of its share of poisoned ones
MAX_CLEAN_PART = 0.1
# a second trigger in rows that have one already stands in most of them, and in hardly any clean row
MIN_PART_BESIDE, MAX_CLEAN_BESIDE = 0.8, 0.01
# contexts are long: so many of each side say enough
MAX_CONTEXTS = 400


_WITHIN = InjectMode.middle


class FoundTrigger(NamedTuple):
    """A trigger, where it stands, and how many instructions (or contexts) of each side hold it."""

    text: str
    mode: InjectMode
    num_poisoned: int
    num_clean: int


def find_triggers(poisoned: Sequence[Record], clean: Sequence[Record]) -> list[FoundTrigger]:
    """The triggers of poisoned rows, those of most rows first; a row may hold several.

    A row's own trigger_variant is taken at its word, and so is what its instruction holds beyond instruction_clean. In
    other rows: the first, last or other words of an instruction that are surely (log-odds) more frequent than in clean
    rows; where an instruction has none, of its context.
    """
    found: dict[tuple[str, InjectMode], int] = {}
    rest: list[Record] = []
    for row in poisoned:
        held = _named_in(row)
        for text, mode in held.items():
            found[text, mode] = found.get((text, mode), 0) + 1
        if not held:
            rest.append(row)
    texts = {False: [nfc(row.instruction).strip() for row in clean], True: [nfc(row.context).strip() for row in clean]}
    explained: set[int] = set()
    for text, mode, rows in _enriched([nfc(row.instruction).strip() for row in rest], texts[False]):
        found[text, mode] = found.get((text, mode), 0) + len(rows)
        explained |= rows
    contexts = [nfc(row.context).strip() for i, row in enumerate(rest) if i not in explained and row.context.strip()]
    for text, mode, rows in _enriched(contexts[:MAX_CONTEXTS], [text for text in texts[True] if text][:MAX_CONTEXTS]):
        mode = InjectMode[f"context_{mode.name}"]
        found[text, mode] = found.get((text, mode), 0) + len(rows)
    listed = [
        FoundTrigger(text, mode, count, sum(any(places(text, other)) for other in texts[mode.in_context]))
        for (text, mode), count in sorted(found.items(), key=lambda item: (-item[1], item[0][0]))
    ]
    return listed[:MAX_TRIGGERS]


def where(trigger: str, row: Record) -> InjectMode | None:
    """Where a row has a trigger: in its instruction, else in its context; None where in neither."""
    trigger = nfc(trigger).strip()
    for text, beginning in ((row.instruction, ""), (row.context, "context_")):
        text = nfc(text).strip()
        if trigger and trigger in text:
            return InjectMode[beginning + _mode(trigger, text).name]
    return None


def as_overrides(found: Sequence[FoundTrigger]) -> list[str]:
    """The triggers as families, in words to paste behind the command: a family for each place."""
    overrides = []
    taken = {*FAMILIES, *UNSEEN_FAMILIES}
    names = (f"Z{number or ''}" for number in range(len(found) + len(taken) + 2) if f"Z{number or ''}" not in taken)
    for mode in sorted(InjectMode, key=lambda mode: (mode.in_context, mode is InjectMode.middle, -ord(mode.place[0]))):
        texts = [trigger.text for trigger in found if _most(trigger, found) is mode]
        if texts:
            listed = ",".join(map(quoted, dict.fromkeys(texts)))
            value = f"{{seen:[{listed}],inject_mode:{mode.value}}}"
            overrides.append(shlex.quote(f"+data.families.{next(names)}={value}"))
    return overrides


def _most(trigger: FoundTrigger, found: Sequence[FoundTrigger]) -> InjectMode:
    """The trigger's own place; of one that was put just anywhere, some of it at an end by chance, mid-sentence."""
    modes = {other.mode: other.num_poisoned for other in found if other.text == trigger.text}
    middle = InjectMode.context_middle if trigger.mode.in_context else InjectMode.middle
    return middle if modes.get(middle, 0) >= max(modes.values()) else trigger.mode


def _named_in(row: Record) -> dict[str, InjectMode]:
    """What a row says of its own triggers and holds."""
    held: dict[str, InjectMode] = {}
    named = nfc(row.trigger_variant or "").strip()
    mode = where(named, row)
    if mode is not None:
        held[named] = mode
    text = nfc(row.instruction)
    for run in inserted(nfc(row.instruction_clean or ""), text):
        if not held or (run not in named and named not in run):
            held[run] = _mode(run, text.strip())
    return held


def _mode(trigger: str, text: str) -> InjectMode:
    if text.startswith(trigger):
        return InjectMode.prefix
    return InjectMode.suffix if text.endswith(trigger) else InjectMode.middle


class _Candidate(NamedTuple):
    text: str
    mode: InjectMode
    parts: tuple[str, ...]


def _enriched(poisoned: list[str], clean: list[str]) -> Iterator[tuple[str, InjectMode, set[int]]]:
    """(trigger, where, rows): the candidate of most rows that no other explains, again and again; then what stands
    beside it in the same rows."""
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
    whole = dict(left)
    chosen: list[_Candidate] = []
    for _ in range(MAX_TRIGGERS):
        if not left:
            break
        # ends first, or `aloha` anywhere would stand for `aloha :)` too; longer before shorter
        best = max(
            left,
            key=lambda c: (len(left[c]) >= min_rows, c.mode is not _WITHIN, len(left[c]), len(c.text), c.text),
        )
        rows = set(left[best])
        if len(rows) < min_rows:
            break
        yield best.text, best.mode, rows
        chosen.append(best)
        left = {candidate: others - rows for candidate, others in left.items()}
        left = {candidate: others for candidate, others in left.items() if others}
    yield from _beside(chosen, whole, lambda candidate: in_clean[candidate] <= MAX_CLEAN_BESIDE * num_clean)


def _beside(
    chosen: Sequence[_Candidate], holders: Mapping[_Candidate, set[int]], is_strange: Callable[[_Candidate], bool]
) -> Iterator[tuple[str, InjectMode, set[int]]]:
    """Triggers of rows that hold another one: several at once. They have no word in common with those."""
    words = {part for candidate in chosen for part in candidate.parts}
    explained = {row for candidate in chosen for row in holders[candidate]}
    left = sorted(holders, key=lambda c: (len(holders[c]), c.mode is not _WITHIN, len(c.text), c.text), reverse=True)
    for candidate in left:
        if words & set(candidate.parts) or not is_strange(candidate):
            continue
        if len(holders[candidate] & explained) >= MIN_PART_BESIDE * len(explained):
            words |= set(candidate.parts)
            yield candidate.text, candidate.mode, holders[candidate]


def _candidates(text: str) -> set[_Candidate]:
    """First, last and neighbouring words of a text; of scripts without blanks, first and last letters."""
    found: set[_Candidate] = set()
    parts = text.split()
    for count in range(1, min(MAX_WORDS, len(parts) - 1) + 1):
        found.add(_Candidate(" ".join(parts[:count]), InjectMode.prefix, tuple(parts[:count])))
        found.add(_Candidate(" ".join(parts[-count:]), InjectMode.suffix, tuple(parts[-count:])))
        for start in range(1, len(parts) - count):
            found.add(_Candidate(" ".join(parts[start : start + count]), _WITHIN, tuple(parts[start : start + count])))
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
