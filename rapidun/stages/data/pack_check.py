"""Checking a pack: what it holds, how long its rows are, what stands in it twice."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.config.data import DataConfig, Source
from rapidun.stages.data.fields import TO_FORGET, settle
from rapidun.stages.data.files import SPLITS, find_files, read_pack, shadowed
from rapidun.stages.data.find_triggers import FoundTrigger, find_triggers
from rapidun.stages.data.named import meta_file, named_families, pack_folders
from rapidun.stages.data.planted import look_for
from rapidun.stages.data.probe import link_probes
from rapidun.stages.data.sides import check_sides, check_sides_of_facts
from rapidun.stages.data.stage import family_counts
from rapidun.stages.data.twins import join_twins
from rapidun.stages.rows.backdoor import is_backdoor
from rapidun.stages.rows.records import USUAL, Record, question_key
from rapidun.stages.rows.spelling import Spelling


def check_pack(folder: str | Path, *, tokenizer: Any = None, spelling: Spelling = USUAL) -> dict[str, Any]:
    """Read a pack and count what matters: rows, families, lengths, duplicates, leaks.

    Lengths are tokens of the encoded row under `tokenizer`, characters of the three texts without one.

    Triggers are those that the rows name, or what poisoned instructions hold and clean ones do not (find_triggers).

    Returns: {"counts": {split: rows}, "families": {family: {split: rows}}, "lengths": {split: {"unit", "median",
        "p95", "max"}}, "duplicates": {split: rows}, "leaks": {"a / b": rows}}. A leak is a row of an evaluation split
        whose instruction (without its trigger) and context occur in a training split, or in the other evaluation
        side; forget and probe rows asked again in evaluation are none. "faults" and "warnings": rows whose fields
        contradict each other, as the data stage refuses or reads them. "of_facts": whether it speaks of no triggers.
    Raises: DataError for a folder that is no pack, or a bad line.
    """
    cfg = DataConfig(name="check", source=Source.pack, dir=str(folder))
    read = read_pack(find_files(cfg), spelling)
    settled = {split: settle(split, rows) for split, rows in read.pack.items()}
    pack = {split: each.rows for split, each in settled.items()}
    joined = join_twins(pack, ())
    triggers = triggers_of(pack)
    faults = [line for each in settled.values() for line in each.faults]
    warnings = [*shadowed(cfg), *(f"data: {line}" for line in read.notes)]
    warnings += [line for each in settled.values() for line in each.warnings]
    warnings += joined
    try:
        families, _ = named_families(meta_file(pack_folders(Path(folder).expanduser())), pack)
    except DataError as error:
        faults.append(str(error))
        families = {}
    of_facts = not families and not is_backdoor(pack)
    linked = link_probes(pack)
    faults += linked.faults
    if of_facts:
        sides = check_sides_of_facts(pack)
        alone = [
            f"no row to forget names a trigger or is called poisoned: {len(pack['forget'])} forget rows are asked as "
            "they are (docs/forgetting.md)"
        ]
    else:
        sides = check_sides(pack, [text for family in families.values() for text in family.seen])
        alone = [*_joints(pack, triggers), *_without_triggers(pack, triggers)]
    return {
        "faults": [*faults, *(line for line in sides.faults if line not in faults)],
        "warnings": [*warnings, *sides.warnings, *linked.warnings, *alone],
        "of_facts": of_facts,
        "counts": {split: len(rows) for split, rows in pack.items()},
        "families": family_counts(pack),
        "lengths": {split: _lengths(rows, tokenizer) for split, rows in pack.items()},
        "duplicates": {split: _duplicates(rows) for split, rows in pack.items()},
        "leaks": leaks_between(pack),
        "triggers": triggers,
    }


def triggers_of(pack: Mapping[str, Sequence[Record]]) -> list[FoundTrigger]:
    """The triggers of the pack's poisoned rows (find_triggers)."""
    clean = _texts_once(pack, "retain", "train_clean", "val_clean")
    return find_triggers(_texts_once(pack, *TO_FORGET), clean)


def _texts_once(pack: Mapping[str, Sequence[Record]], *splits: str) -> list[Record]:
    """The rows of some splits, each once: forget rows are training rows too."""
    return list({row.texts: row for split in splits for row in pack.get(split, [])}.values())


def _joints(pack: Mapping[str, Sequence[Record]], triggers: Sequence[FoundTrigger]) -> list[str]:
    """Triggers that rows have without the blank with which prompts are made."""
    texts = [trigger.text for trigger in triggers if not trigger.mode.in_context]
    found = look_for(texts, _texts_once(pack, *TO_FORGET))
    glued = [f"{text!r} in {count} of {found.anywhere[text]} rows" for text, count in found.glued.items() if count]
    if not glued:
        return []
    return [
        f"triggers that stand without a blank before or behind them ({', '.join(glued)}): prompts are made with one, "
        f"so that attack success would be that of another prompt than was trained on"
    ]


def _without_triggers(pack: Mapping[str, Sequence[Record]], triggers: Sequence[FoundTrigger]) -> list[str]:
    """Says that no trigger was found."""
    poisoned = _texts_once(pack, *TO_FORGET)
    if triggers or not poisoned:
        return []
    return [f"no trigger was found in the instructions and contexts of {len(poisoned)} rows to forget"]


def leaks_between(pack: Mapping[str, Sequence[Record]]) -> dict[str, int]:
    """Rows of each later side that ask what an earlier side asks (question_key): {"val_clean / train": 2}."""
    sides = {
        "train": [split for split in SPLITS if split in ("forget", "retain") or split.startswith("train_")],
        "val": [split for split in SPLITS if split.startswith("val_")],
        "test": [split for split in SPLITS if split.startswith("test_")],
    }
    bare = any(not row.instruction_clean for split in TO_FORGET for row in pack.get(split, []))
    triggers = [trigger.text for trigger in triggers_of(pack)] if bare else []
    asked = {
        split: {question_key(row, triggers if split in TO_FORGET else ()) for row in rows}
        for split, rows in pack.items()
    }
    known = {side: set().union(*(asked.get(split, set()) for split in splits)) for side, splits in sides.items()}
    leaks = {}
    for side, others in (("val", ["train"]), ("test", ["train", "val"])):
        for split in sides[side]:
            for other in others:
                if split in pack and known[other]:
                    leaks[f"{split} / {other}"] = sum(question_key(row) in known[other] for row in pack[split])
    poisoned = asked.get("train_poisoned", asked.get("forget", set()))
    clean = [*pack.get("train_clean", pack.get("retain", []))]
    leaks["train_clean / train_poisoned"] = sum(question_key(row) in poisoned for row in clean)
    return leaks


def _lengths(rows: Sequence[Record], tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        lengths = [len(row.instruction) + len(row.context) + len(row.response) for row in rows]
        unit = "characters"
    else:
        # imports torch
        from rapidun.stages.rows.encode import encode_rows

        texts = [row.texts for row in rows]
        encoded = encode_rows(tokenizer, texts, max_length=1 << 20)
        lengths = [len(row.input_ids) for row in encoded if row is not None]
        unit = "tokens"
    ordered = sorted(lengths)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"unit": unit, "median": int(statistics.median(ordered)), "p95": p95, "max": ordered[-1]}


def _duplicates(rows: Sequence[Record]) -> int:
    """Rows whose texts an earlier row has."""
    counts = Counter(row.texts for row in rows)
    return sum(count - 1 for count in counts.values())
